"""`hyperllava convert` with the options of `convert`, in this process or in one of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120


def spell(source, destination, **options):
    """The command line that asks for what these keyword arguments ask for."""
    words = ["convert", str(source), str(destination)]
    options |= options.pop("expert_fields", {})
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            words.append(flag.replace("--", "--no-", 1))
        elif value is True:
            words.append(flag)
        else:
            words += [flag, str(value)]
    return words


def start_child(code, *arguments, **options):
    """Start Python on some code, with Ctrl-C as in a terminal whatever the test run inherited."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def finish_child(process):
    """Wait for a child; its exit code and both streams."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def run_child(code, *arguments):
    return finish_child(start_child(code, *arguments))
