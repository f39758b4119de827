"""A step whose loss or gradient is not finite: kept on disk, with what is known of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


class NonFiniteStepError(ValueError):
    """A step gave a loss or a gradient that is no number; the weights are those before it."""


def save_bad_batches(
    folder: Path,
    rank: int,
    batches: Sequence[dict[str, torch.Tensor]],
    facts: dict[str, Any],
) -> Path:
    """Write a step's batches and what is known of them.

    Args:
        folder: The folder of the bad step.
        rank: This process's number.
        batches: What the model was called with, one after another.
        facts: JSON values, such as losses and row numbers.

    Returns:
        The file of tensors; `load_file` gives them as `BATCH/NAME`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}/{name}": value.detach().cpu().contiguous()
        for number, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    path = folder / f"batches-rank{rank}.safetensors"
    save_file(tensors, path)
    text = json.dumps(facts, indent=2)
    (folder / f"facts-rank{rank}.json").write_text(text + "\n", encoding="utf-8")
    return path


def to_json_numbers(values: Sequence[float]) -> list[Any]:
    """Write numbers as JSON has them: what is not finite as a string.

    Args:
        values: Numbers.

    Returns:
        JSON values.
    """
    return [value if math.isfinite(value) else str(value) for value in values]
