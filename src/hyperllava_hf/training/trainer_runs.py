"""Runs of transformers' Trainer over rows that are made from a seed, shared by all stages.

A row is only its number: the stage's collator draws scenes and words conversations for a whole
batch at once. Rows never repeat, so there are no epochs, and the same seed gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

WARMUP_FRACTION = 0.03
NUM_LOG_ROWS = 100


@dataclass(frozen=True)
class RunSettings:
    """What a stage's optimisation is made of.

    Attributes:
        num_steps: Optimiser steps.
        batch_size: Rows a step.
        learning_rate: Peak of the cosine schedule.
        weight_decay: On weight matrices; the paper's stages use none.
        adam_beta2: AdamW's second decay.
        max_grad_norm: Where gradients are clipped.
        seed: Of the rows, the initial weights and their order.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 0


class SeedRows(Dataset):
    """Rows that are their own seeds: `first`, `first + 1`, ...

    Args:
        first: The first seed.
        num_rows: How many.
    """

    def __init__(self, first: int, num_rows: int) -> None:
        self.first = first
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> int:
        return self.first + index


def build_training_arguments(settings: RunSettings, folder: Path) -> TrainingArguments:
    """Build the Trainer's arguments: on the CPU, cosine with 3 % warm-up, nothing saved on the way.

    Args:
        settings: The stage's settings.
        folder: Where the Trainer may write.

    Returns:
        The arguments.
    """
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=settings.num_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=1e-8,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP_FRACTION * settings.num_steps),
        logging_steps=max(1, settings.num_steps // NUM_LOG_ROWS),
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
    )


def run_training(
    model: nn.Module,
    collate: Callable[[list[int]], dict[str, Any]],
    settings: RunSettings,
    folder: Path,
    callbacks: list[TrainerCallback] | None = None,
) -> list[dict[str, float]]:
    """Train a model whose `forward` returns a loss.

    Args:
        model: The model; parameters without gradient stay as they are.
        collate: Makes a batch from the seeds of its rows.
        settings: The stage's settings.
        folder: Where the Trainer may write.
        callbacks: Further callbacks of the Trainer.

    Returns:
        The log: one row each time the Trainer logged, with step, loss, learning rate and
        gradient norm.
    """
    num_rows = settings.num_steps * settings.batch_size
    trainer = Trainer(
        model=model,
        args=build_training_arguments(settings, folder),
        train_dataset=SeedRows(settings.seed * 10**9, num_rows),
        data_collator=collate,
        callbacks=callbacks,
    )
    trainer.train()
    names = ("step", "loss", "learning_rate", "grad_norm")
    return [
        {name: row[name] for name in names if name in row}
        for row in trainer.state.log_history
        if "loss" in row
    ]
