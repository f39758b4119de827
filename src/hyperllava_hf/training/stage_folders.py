"""Folders of finished stages, so that an interrupted recipe goes on where it stopped.

A stage writes into a folder of its own; the marker comes last, so a folder with a marker is
complete and one without is started anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPLETION_MARKER = "complete.json"


def is_complete(folder: Path) -> bool:
    """Tell whether a stage has finished.

    Args:
        folder: The stage's folder.

    Returns:
        Whether it carries the marker.
    """
    return (folder / COMPLETION_MARKER).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a finished stage recorded.

    Args:
        folder: The stage's folder.

    Returns:
        The marker's content.
    """
    record: dict[str, Any] = json.loads((folder / COMPLETION_MARKER).read_text(encoding="utf-8"))
    return record


def run_once(folder: Path, run: Callable[[Path], dict[str, Any]]) -> bool:
    """Run a stage unless it has finished before.

    Args:
        folder: The stage's folder; what an interrupted run left in it is removed.
        run: Trains, saves into the folder that it is given, and returns the record to keep.

    Returns:
        Whether it ran.
    """
    if is_complete(folder):
        return False
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    record = run(folder)
    marker = folder / f"{COMPLETION_MARKER}.partial"
    marker.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    marker.rename(folder / COMPLETION_MARKER)
    return True
