"""A training run from settings to a model folder: `hyperllava train` as a function.

OUT/checkpoint-N     what a resume takes
OUT/model            the model, with processor and code (OUT/adapter for a LoRA)
OUT/training.json    settings, versions, data, counts and losses
OUT/bad-step-N       only where a step was no number
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState  # type: ignore[import-untyped]

from .. import __version__
from ..data import ConversationCollator, DataSource, open_rows
from .batch_plan import BatchPlan, plan_batches
from .model_folder import ADAPTER, MODEL, leave_model, load_processor_of
from .model_loading import (
    build_without_values,
    load_for_training,
    load_processor,
    raise_if_experts_resized,
    raise_if_packages_missing,
)
from .run_checkpoints import list_checkpoints, read_record, remove_leftovers
from .run_record import build_record, fingerprint_model, fingerprint_rows, raise_if_different
from .settings import TrainingSettings
from .stages import GroupCount, count_groups, format_counts
from .trainer import HyperLlavaTrainer
from .training_arguments import build_training_arguments

REPORT = "training.json"
# AdamW's two averages, in float32.
OPTIMIZER_BYTES = 8


@dataclass(frozen=True)
class TrainingReport:
    """What a run did, or would do.

    Attributes:
        output: The run's folder; None for a dry run.
        model: The folder that it left; None for a dry run and on ranks but the first.
        counts: What is trained, by group.
        plan: A step's rows.
        num_rows: Rows an epoch; None where rows are streamed.
        num_bad_rows: Rows that were left out when the data was opened.
        num_steps: Optimiser steps.
        resumed_from: The checkpoint that it went on from.
        losses: Logged (step, loss).
    """

    output: Path | None
    model: Path | None
    counts: list[GroupCount]
    plan: BatchPlan
    num_rows: int | None
    num_bad_rows: int
    num_steps: int
    resumed_from: str | None
    losses: list[tuple[int, float]]


def say_nothing(text: str) -> None:
    """Take a message and keep it to oneself."""


def open_data(settings: TrainingSettings, processor: Any) -> Any:
    """Open the run's rows.

    Args:
        settings: The run's settings.
        processor: The model's processor.

    Returns:
        Rows, as `open_rows` gives them.

    Raises:
        ValueError: If no data is named, or it cannot be trained on.
    """
    if not settings.data:
        raise ValueError(
            "no data is named; expected --data FILE: LLaVA JSON or JSONL, or a Hub data set"
        )
    sources = [
        DataSource(
            path,
            image_folder=settings.image_folder,
            split=settings.data_split,
            name=settings.data_name,
            revision=settings.data_revision,
            format=settings.data_format,
        )
        for path in settings.data
    ]
    return open_rows(
        sources,
        processor=processor,
        template=settings.chat_template,
        max_length=settings.max_length,
        on_bad_row=settings.on_bad_row,
        streaming=settings.streaming,
    )


def count_steps(settings: TrainingSettings, plan: BatchPlan, num_rows: int | None) -> int:
    """Count optimiser steps.

    Args:
        settings: The run's settings.
        plan: A step's rows.
        num_rows: Rows an epoch.

    Returns:
        Steps of the whole run.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    assert num_rows is not None  # the settings' own check
    share = -(-num_rows // plan.num_devices)
    batches = -(-share // plan.device_batch_size)
    return -int(-settings.num_epochs * -(-batches // plan.num_accumulated) // 1)


def find_idle_steps(settings: TrainingSettings, num_steps: int) -> str | None:
    """Say that a run is over before its learning rate has left zero, if it is.

    Args:
        settings: The run's settings.
        num_steps: Steps of the whole run.

    Returns:
        One sentence; None for a run that trains.
    """
    warms_up = settings.schedule != "constant" and settings.warmup_ratio > 0
    # The first step of a warm-up is taken at a learning rate of 0.
    if num_steps > 1 or not warms_up:
        return None
    return (
        f"note: {num_steps} step, and warm-up begins at a learning rate of 0: nothing will be "
        f"trained. A step takes {settings.global_batch_size} rows (global_batch_size): lower it, "
        "raise num_epochs, or set warmup_ratio = 0"
    )


def choose_checkpoint(output: Path, resume: bool, say: Callable[[str], None]) -> Path | None:
    """Find where to go on, or check that nothing is there yet.

    Args:
        output: The run's folder.
        resume: Whether to go on.
        say: Where messages go.

    Returns:
        The newest complete checkpoint; None to begin.

    Raises:
        ValueError: If there are checkpoints and the run is not to go on, or what the run would
            leave is there and not a run's.
    """
    found = list_checkpoints(output)
    for name in (MODEL, ADAPTER):
        if not found and not (output / REPORT).exists() and (output / name).exists():
            raise ValueError(
                f"{output / name} is there already, and no run of this folder made it; it would be "
                "replaced. Name another --output"
            )
    if not resume:
        if found or (output / REPORT).exists():
            raise ValueError(
                f"{output} holds a run already ({', '.join(path.name for path in found) or REPORT}"
                "); go on with --resume, or name another --output"
            )
        return None
    if not found:
        say(f"{output} has no complete checkpoint: the run begins at step 0")
        return None
    say(f"resuming from {found[-1]}")
    return found[-1]


def write_report(report: TrainingReport, trainer: HyperLlavaTrainer, settings: Any) -> None:
    """Write the run's record beside what it leaves.

    Args:
        report: What was done.
        trainer: The trainer.
        settings: The run's settings.
    """
    values = {
        "settings": settings.to_dict(),
        "versions": {
            "hyperllava_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": str(trainer.args.device),
        "num_devices": report.plan.num_devices,
        "data_fingerprint": trainer.record["data_fingerprint"],
        "model_fingerprint": trainer.record["model_fingerprint"],
        "num_rows": report.num_rows,
        "num_bad_rows": report.num_bad_rows,
        "num_skipped_rows": trainer.num_skipped_rows,
        "num_tokens": trainer.num_tokens,
        "num_steps": report.num_steps,
        "batch": asdict(report.plan),
        "groups": [asdict(count) for count in report.counts],
        "resumed_from": report.resumed_from,
        "losses": [list(pair) for pair in report.losses],
    }
    assert report.output is not None
    partial = report.output / f"{REPORT}.partial"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, report.output / REPORT)


def plan_run(settings: TrainingSettings, say: Callable[[str], None]) -> TrainingReport:
    """Say what a run would do: nothing is trained, no weights are loaded.

    Args:
        settings: The run's settings.
        say: Where messages go.

    Returns:
        The plan.
    """
    settings.raise_if_invalid()
    raise_if_experts_resized(settings)
    plan = plan_batches(settings, PartialState().num_processes)
    model = build_without_values(settings)
    counts = count_groups(model)
    rows = open_data(settings, load_processor(settings))
    num_rows = None if settings.streaming else len(rows)
    num_steps = count_steps(settings, plan, num_rows)
    report = TrainingReport(
        None, None, counts, plan, num_rows, getattr(rows, "num_bad_rows", 0), num_steps, None, []
    )
    announce(report, settings, say)
    return report


def announce(
    report: TrainingReport, settings: TrainingSettings, say: Callable[[str], None]
) -> None:
    """Say what is trained, on what, and how.

    Args:
        report: The plan.
        settings: The run's settings.
        say: Where it goes.
    """
    for line in format_counts(report.counts):
        say(line)
    rows = "streamed rows" if report.num_rows is None else f"{report.num_rows:,} rows"
    bad = f" ({report.num_bad_rows:,} bad ones left out)" if report.num_bad_rows else ""
    say(f"{rows}{bad}, {report.plan}, {report.num_steps:,} steps")
    idle = find_idle_steps(settings, report.num_steps)
    if idle:
        say(idle)


def build_trainer(
    settings: TrainingSettings, plan: BatchPlan, output: Path, say: Callable[[str], None]
) -> tuple[HyperLlavaTrainer, TrainingReport]:
    """Load model and data, and build the trainer.

    Args:
        settings: The run's settings.
        plan: A step's rows.
        output: The run's folder.
        say: Where messages go.

    Returns:
        The trainer, and what it is about to do.
    """
    processor = load_processor(settings)
    rows = open_data(settings, processor)
    # Before the Trainer's arguments, which would have ZeRO-3 tear weights apart as they are read.
    model = load_for_training(settings, PartialState().device)
    record = build_record(
        settings, fingerprint_model(model), fingerprint_rows(rows, settings), plan.num_devices
    )
    num_rows = None if settings.streaming else len(rows)
    report = TrainingReport(
        output,
        None,
        count_groups(model),
        plan,
        num_rows,
        getattr(rows, "num_bad_rows", 0),
        count_steps(settings, plan, num_rows),
        None,
        [],
    )
    announce(report, settings, say)
    trainer = HyperLlavaTrainer(
        settings,
        record,
        output,
        load_processor_of(settings),
        model=model,
        args=build_training_arguments(settings, plan, output),
        train_dataset=rows,
        data_collator=ConversationCollator(
            processor, settings.chat_template, settings.max_length, settings.on_bad_row
        ),
    )
    return trainer, report


def train(
    settings: TrainingSettings,
    output: Path,
    resume: bool = False,
    say: Callable[[str], None] = say_nothing,
) -> TrainingReport:
    """Train.

    Args:
        settings: What to do.
        output: The run's folder.
        resume: Whether to go on from the newest complete checkpoint in it.
        say: Where messages go; only the first rank calls it.

    Returns:
        What was done.

    Raises:
        ValueError: If the settings, the model or the data are wrong, the folder holds another run,
            or a step gives no number.
        OSError: If a file cannot be read or written.
    """
    settings.raise_if_invalid()
    raise_if_packages_missing(settings)
    raise_if_experts_resized(settings)
    state = PartialState(cpu=not torch.accelerator.is_available())
    if not state.is_main_process:
        say = say_nothing
    plan = plan_batches(settings, state.num_processes)
    checkpoint = choose_checkpoint(output, resume, say)
    state.wait_for_everyone()
    if state.is_main_process and output.exists():
        for name in remove_leftovers(output):
            say(f"removed {name}, which an interrupted run left half written")
    trainer, report = build_trainer(settings, plan, output, say)
    output.mkdir(parents=True, exist_ok=True)
    if checkpoint is not None:
        stored = read_record(checkpoint)
        raise_if_different(checkpoint, stored, trainer.record)
        trainer.num_tokens = stored["num_tokens"]
        trainer.num_skipped_rows = stored["num_skipped_rows"]
        if stored["step"] >= report.num_steps:
            trainer.is_done = True
            trainer.args.max_steps = report.num_steps  # what an empty loader cannot tell
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return finish(trainer, report, checkpoint, say)


def finish(
    trainer: HyperLlavaTrainer,
    report: TrainingReport,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> TrainingReport:
    """Leave the model and the run's record.

    Args:
        trainer: The trainer after training.
        report: What was planned.
        checkpoint: Where the run went on from.
        say: Where messages go.

    Returns:
        What was done.
    """
    assert report.output is not None
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    folder = leave_model(trainer, report.output)
    done = TrainingReport(
        **{
            **vars(report),
            "model": folder,
            "num_steps": trainer.state.global_step,
            "resumed_from": checkpoint.name if checkpoint else None,
            "losses": losses,
        }
    )
    if trainer.is_world_process_zero():
        write_report(done, trainer, trainer.settings)
        say(f"wrote {folder}")
    trainer.accelerator.wait_for_everyone()
    return done
