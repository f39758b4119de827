"""The table of results: one row a run, read by the report alone."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..evaluation.digit_questions import FAMILIES
from .arms import Arm, list_arms
from .costs import (
    ROW_IMAGE_POSITIONS,
    ROW_POSITIONS,
    count_added_operations,
    count_base_operations,
    count_expert_parameters,
    count_lora_parameters,
)

MEASURES = ("overall", "loss", *FAMILIES)
COLUMNS = (
    "group",
    "arm",
    "regime",
    "width",
    "seed",
    "visual_rate",
    "language_rate",
    *(f"{split}_{measure}" for split in ("test", "validation") for measure in MEASURES),
    "align_loss",
    "instruct_loss",
    "trained_parameters",
    "added_parameters",
    "added_operations",
    "base_operations",
    "seconds",
    "date",
    "commit",
    "device",
    "python",
    "torch",
    "transformers",
)


def read_commit() -> str:
    """Read the commit that the code is at.

    Returns:
        Its short hash, or "unknown" outside a repository.
    """
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def describe_versions() -> dict[str, str]:
    """Name what a run was made with.

    Returns:
        Versions by package, and the commit.
    """
    return {
        "commit": read_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe_costs(arm: Arm) -> dict[str, int]:
    """State what an arm adds to LLaVA.

    Args:
        arm: The arm.

    Returns:
        Added parameters, and added and base operations of a forward over one row.
    """
    fields = arm.expert_fields
    return {
        "added_parameters": count_expert_parameters(arm.width, fields)
        + count_lora_parameters(arm.width, arm.lora_rank),
        "added_operations": count_added_operations(arm.width, fields, arm.lora_rank),
        "base_operations": count_base_operations(arm.width, ROW_POSITIONS, ROW_IMAGE_POSITIONS),
    }


def build_row(arm: Arm, record: dict[str, Any]) -> dict[str, Any]:
    """Build the row of a run.

    Args:
        arm: The arm.
        record: The run's record, with "test" where the test split was read.

    Returns:
        Values by column.
    """
    row = {
        "group": arm.group,
        "arm": arm.name,
        "regime": arm.regime,
        "width": arm.width,
        "visual_rate": arm.rates.visual,
        "language_rate": arm.rates.language,
        **describe_costs(arm),
        **record,
    }
    for split in ("test", "validation"):
        for measure, value in (row.pop(split, None) or {}).items():
            row[f"{split}_{measure}"] = f"{value:.4f}"
    for name in ("align_loss", "instruct_loss"):
        row[name] = f"{row[name]:.4f}"
    return row


def write_table(folder: Path, path: Path) -> int:
    """Write the table of all finished runs.

    Args:
        folder: Where the runs lie.
        path: The csv file.

    Returns:
        The number of runs.
    """
    rows = []
    for arm in list_arms():
        for seed in arm.seeds:
            file = folder / f"{arm.name}-{seed}.json"
            if file.is_file():
                record = json.loads(file.read_text(encoding="utf-8"))
                test = file.with_suffix(".test.json")
                if test.is_file():
                    record["test"] = json.loads(test.read_text(encoding="utf-8"))
                rows.append(build_row(arm, record))
    write_rows(path, rows, COLUMNS)
    return len(rows)


def write_rows(
    path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as a CSV.

    Args:
        path: The csv file.
        rows: The rows.
        columns: Its columns; those of the first row when None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the table.

    Args:
        path: The csv file.

    Returns:
        Its rows.
    """
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def collect_values(rows: Iterable[dict[str, str]], arm: str, column: str) -> dict[int, float]:
    """Collect a column of an arm by seed.

    Args:
        rows: Rows of the table.
        arm: The arm's name.
        column: The column.

    Returns:
        Values by seed; seeds whose value is missing are left out.
    """
    return {
        int(row["seed"]): float(row[column]) for row in rows if row["arm"] == arm and row[column]
    }
