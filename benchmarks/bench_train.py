"""Cost of a training step: experts alone beside LoRA and beside full tuning of the same LLaVA.

Every arm trains the projector (with its visual expert where it has one) and recomputes blocks in
the backward pass (gradient checkpointing); the vision tower is frozen. A step is forward, backward
and AdamW, whose learning rate is zero: everything is computed, and the arms, which share the base
weights, stay as they are. Time is measured in turns in one process, memory in a process an arm.

    python benchmarks/bench_train.py
    python benchmarks/bench_train.py --device cuda --batch 8
"""

import csv
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness import (
    BASELINE,
    describe_run,
    interleave,
    parse_options,
    report,
    summarize,
    write_rows,
)
from peft import get_peft_model
from side_by_side import build_inputs, build_models

from hyperllava_hf import lora_config
from hyperllava_hf.training.stages import get_group

RANK = 16
BASE = {"lora": BASELINE, "full": BASELINE, "prompt": "prompt", "token": "token"}
EXPERT_GROUPS = ("projector", "visual_expert", "language_expert")
# Largest ratio to LoRA's step and to its memory that is good enough.
GOALS = {"prompt": (1.05, 1.0), "token": (1.15, 1.1)}
NUM_TEXT, NUM_ANSWER = 64, 32
KIBIBYTE = 1024


def choose_trained(arm, name):
    """Say whether an arm trains a parameter of its base."""
    group = get_group(name)
    if arm in ("prompt", "token"):
        return group in EXPERT_GROUPS
    return group == "projector" or (arm == "full" and group != "vision_tower")


def prepare_arm(arm, model):
    """Freeze, adapt and switch on recomputation; returns the model and its trained parameters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(choose_trained(arm, name))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if arm == "lora":
        settings = {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0}
        model = get_peft_model(
            model, lora_config(**settings, modules_to_save=["multi_modal_projector"])
        )
    return model.train(), [p for p in model.parameters() if p.requires_grad]


def build_step(arm, model, trained, inputs):
    """One step of training, which leaves the weights as they are."""
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    labels = inputs["input_ids"].clone()
    labels[:, :-NUM_ANSWER] = -100

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        optimizer.step()

    return step


def build_arms(options, arms):
    """Build arms over one set of base weights."""
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    steps, counts = {}, {}
    for arm in arms:
        # Built anew with the same seed; an arm on its own holds no other's weights.
        base = build_models(options.size, options.device, dtype)[BASE[arm]]
        inputs = build_inputs(base, options.batch, NUM_TEXT)
        model, trained = prepare_arm(arm, base)
        steps[arm] = build_step(arm, model, trained, inputs)
        counts[arm] = sum(parameter.numel() for parameter in trained)
    return steps, counts


def reset_peak(device):
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device):
    """Peak bytes since `reset_peak`: allocated on the GPU, or resident in the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(peak) * KIBIBYTE
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE


def measure_memory(options):
    """Take two steps of one arm alone and write the peak of the second."""
    steps, counts = build_arms(options, [options.arm])
    steps[options.arm]()
    reset_peak(options.device)
    steps[options.arm]()
    options.peak_file.write_text(f"{read_peak(options.device)},{counts[options.arm]}\n")


def measure_all_memory(options):
    """Peak bytes and trained parameters of each arm, each measured in a process of its own."""
    found = {}
    for arm in BASE:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "peak.csv"
            command = [sys.executable, __file__, "--arm", arm, "--peak-file", str(file)]
            for name in ("device", "size", "batch"):
                command += [f"--{name}", str(getattr(options, name))]
            subprocess.run(command, check=True)
            ((peak, count),) = csv.reader(file.open())
            found[arm] = (int(peak), int(count))
    return found


def main():
    options = parse_options(__doc__.splitlines()[0], 7, batch=2, arm="", peak_file=Path())
    if options.arm:
        measure_memory(options)
        return
    memory = measure_all_memory(options)
    steps, _ = build_arms(options, BASE)
    seconds = interleave(steps, options.rounds, options.device, warmup=1, clock=options.clock)
    rows = []
    for arm in BASE:
        time_goal, memory_goal = GOALS.get(arm, ("", ""))
        peak, count = memory[arm]
        row = {
            "question": "training step",
            "variant": arm,
            "size": options.size,
            "batch": str(options.batch),
            "text_tokens": str(NUM_TEXT),
            "trained_millions": f"{count / 1e6:.3f}",
            **summarize({**seconds, BASELINE: seconds["lora"]}, arm),
            "goal": str(time_goal),
            "peak_gib": f"{peak / 2**30:.3f}",
            "memory_ratio": f"{peak / memory['lora'][0]:.4f}",
            "memory_goal": str(memory_goal),
            "clock": options.clock,
            **describe_run(options.device),
        }
        rows.append(row)
        report(row)
    write_rows("bench_train", rows, options.output)


if __name__ == "__main__":
    main()
