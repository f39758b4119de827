"""Runs in a process of their own, which may be killed at a chosen moment.

Argument: a JSON file {"runs": [{"settings": ..., "output": folder, "resume": bool, "stop_at":
finished steps at which the run is interrupted}], "kill": {"method": name of a method of the
trainer, "step": finished steps at which its call kills the process}}. With torch's environment of
ranks (RANK, WORLD_SIZE, ...) this is one of several.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState

from hyperllava_hf.training import runs
from hyperllava_hf.training.settings import TrainingSettings
from hyperllava_hf.training.trainer import HyperLlavaTrainer


class Interruption(Exception):
    """Raised where a run is to stop."""


def call_first(method, action):
    """Have a method of the trainer call `action(trainer)` before it does its work."""
    original = getattr(HyperLlavaTrainer, method)

    def call(self, *args, **kwargs):
        action(self)
        return original(self, *args, **kwargs)

    setattr(HyperLlavaTrainer, method, call)
    return lambda: setattr(HyperLlavaTrainer, method, original)


def kill_at(step):
    def kill(trainer):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def stop_at(step):
    def stop(trainer):
        if trainer.state.global_step == step:
            raise Interruption

    return stop


def let_accelerate_shard_on_cpus():
    """Choose FSDP2 where accelerate, which knows it on GPUs alone, would quietly take DDP."""
    original = AcceleratorState.__init__

    def initialize(self, *args, fsdp_plugin=None, **kwargs):
        is_new = not AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_new and fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = initialize


def run(job):
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in job["settings"].items()}
    settings, output = TrainingSettings(**fields), Path(job["output"])
    if "stop_at" not in job:
        runs.train(settings, output, job.get("resume", False), say=print)
        return
    undo = call_first("training_step", stop_at(job["stop_at"]))
    try:
        runs.train(settings, output, say=print)
    except Interruption:
        undo()


def main():
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    let_accelerate_shard_on_cpus()
    if "kill" in jobs:
        call_first(jobs["kill"]["method"], kill_at(jobs["kill"]["step"]))
    for job in jobs["runs"]:
        run(job)


if __name__ == "__main__":
    main()
