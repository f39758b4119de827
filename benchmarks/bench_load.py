"""`from_pretrained` beside LLaVA's: local folders in the page cache.

The LLaVA folder holds the base weights, the HyperLLaVA folders the same and the experts. What is
timed is the call, after the imports, onto the device: the first one of a process ("load"), which
pays for whatever is imported and set up on the way, and later ones, in turns within one process
("load again"), which a process's start does not disturb.

    python benchmarks/bench_load.py --work FOLDER
    python benchmarks/bench_load.py --work FOLDER --device cuda
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from harness import (
    describe_run,
    interleave,
    parse_options,
    report,
    summarize,
    take_turns,
    write_rows,
)
from side_by_side import build_models
from transformers import LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaForConditionalGeneration

# 7B as it is shipped; the CPU's size in its own dtype.
DTYPES = {"7B": torch.bfloat16, "cpu": torch.float32, "tiny": torch.float32}
GOAL = 1.05
# Rounds of "load again", as a multiple of those of "load".
AGAIN = 4

LOADING = """
import sys, time
import torch
kind, folder, device, clock = sys.argv[1:]
if kind == "llava":
    from transformers import LlavaForConditionalGeneration as Model
else:
    from hyperllava_hf import HyperLlavaForConditionalGeneration as Model
import transformers.models.llava.modeling_llava, safetensors, accelerate
if device.startswith("cuda"):
    torch.zeros(1, device=device)
now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
start = now()
model = Model.from_pretrained(folder, dtype="auto").to(device)
if device.startswith("cuda"):
    torch.cuda.synchronize()
print(now() - start)
"""


def load(kind, folder, options):
    """Load a folder in a fresh process; return the seconds of the call."""
    command = [sys.executable, "-c", LOADING, kind, str(folder), options.device, options.clock]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def time_later_loads(folders, options):
    """Time loads in turns within this process; the first ones do not count."""

    def build_run(name):
        is_base = name == "llava"
        kind = LlavaForConditionalGeneration if is_base else HyperLlavaForConditionalGeneration
        return lambda: kind.from_pretrained(folders[name], dtype="auto").to(options.device)

    runs = {name: build_run(name) for name in folders}
    rounds = AGAIN * options.rounds
    return interleave(runs, rounds, options.device, warmup=2, clock=options.clock)


def main():
    options = parse_options(__doc__.splitlines()[0], rounds=9, work="/tmp")
    work = Path(options.work) / "bench-load"
    dtype = DTYPES[options.size]
    shutil.rmtree(work, ignore_errors=True)
    try:
        models = build_models(options.size, options.device, dtype)
        folders = {}
        for name, model in models.items():
            folders[name] = work / name
            model.save_pretrained(folders[name])
        del models, model
        runs = {
            name: lambda name=name, folder=folder: load(name, folder, options)
            for name, folder in folders.items()
        }
        measured = {
            "load": take_turns(runs, options.rounds, warmup=1),
            "load again": time_later_loads(folders, options),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rows = []
    for question, seconds in measured.items():
        for name in folders:
            row = {
                "question": question,
                "variant": name,
                "size": options.size,
                "dtype": str(dtype).removeprefix("torch."),
                **summarize(seconds, name),
                "goal": "" if name == "llava" else f"{GOAL:.4f}",
                "clock": options.clock,
                **describe_run(options.device),
            }
            rows.append(row)
            report(row)
    write_rows("bench_load", rows, options.output)


if __name__ == "__main__":
    main()
