"""What child processes of the tests do, with everything imported that a conversion imports."""

import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import hyperllava_hf.conversion.convert  # noqa: F401
from hyperllava_hf import HyperLlavaForConditionalGeneration  # noqa: F401
from hyperllava_hf.cli import main


def run(job, streams, *arguments):
    """Run one of the jobs below, both streams in files."""
    for descriptor, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    # As in a terminal, whatever the test run inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = globals()[job](*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_at(action, place, count, *words):
    """Run a command and stop at a place that is the same in every run.

    action: the number of a signal, or a file to make and to wait for until it goes away;
    place: a function, as module:name; count: at which of its calls.
    """
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == int(count):
            if action.isdigit():
                signal.raise_signal(int(action))
            else:
                wait_for(Path(action))
        return original(*arguments, **options)

    setattr(owner, name, counted)
    code = main(list(words))
    # A place that was not reached proves nothing.
    return code if calls >= int(count) else 99


def wait_for(gate):
    gate.touch()
    while gate.exists():
        time.sleep(0.01)


def limit_files(num_bytes, *words):
    """Run a command whose files may not grow beyond a size, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(num_bytes), int(num_bytes)))
    return main(list(words))


def read_peak():
    """The largest resident memory of this process so far, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(*words):
    """Run a command; the last line of stderr has the peaks before and after it."""
    before = read_peak()
    code = main(list(words))
    print(json.dumps([before, read_peak()]), file=sys.stderr)
    return code
