"""A run in a process of its own that is killed at a chosen moment.

Argument: a JSON file {"settings": ..., "output": folder, "resume": bool, "kill": {"method": name of
a method of the trainer, "step": finished steps at which its call kills the process}}. With torch's
environment of ranks (RANK, WORLD_SIZE, ...) it is one of several.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from hyperllava_hf.training import runs
from hyperllava_hf.training.settings import TrainingSettings
from hyperllava_hf.training.trainer import HyperLlavaTrainer


def kill_in(method, step):
    """Kill this process where the trainer calls a method with so many steps done."""
    original = getattr(HyperLlavaTrainer, method)

    def call(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(HyperLlavaTrainer, method, call)


def main():
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    if job.get("kill"):
        kill_in(**job["kill"])
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in job["settings"].items()}
    settings = TrainingSettings(**fields)
    try:
        runs.train(settings, Path(job["output"]), job.get("resume", False), say=print)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
