"""Checkpoints that are complete or not there, and finding the newest of them.

OUT/checkpoint-40            complete: its files are on the disk, its record was written last
OUT/.writing/checkpoint-50   what an interrupted run left; removed by the next
OUT/.removing/checkpoint-30  on its way out; the same
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..conversion.staging import sync_folder
from ..json_files import load_json

STAGING, TRASH = ".writing", ".removing"
RECORD = "run.json"
NAME = re.compile(r"checkpoint-(\d+)")
# What a resume reads of the record beside the run's own description.
PROGRESS = ("step", "num_tokens", "num_skipped_rows")
GO_ON = "Remove {} to go on from the checkpoint before it"


def sync_tree(folder: Path) -> None:
    """Make a folder's files and names durable.

    Args:
        folder: The folder.
    """
    for path, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(path))


def list_checkpoints(output: Path) -> list[Path]:
    """List complete checkpoints, the oldest first.

    Args:
        output: The run's folder.

    Returns:
        Their folders.
    """
    found = {}
    for path in output.glob("checkpoint-*"):
        match = NAME.fullmatch(path.name)
        if match and (path / RECORD).is_file():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def remove_leftovers(output: Path) -> list[str]:
    """Remove what interrupted runs left half written or half removed.

    Args:
        output: The run's folder.

    Returns:
        The checkpoints that were half written.

    Raises:
        ValueError: If something else lies where they are written.
    """
    half = sorted(path.name for path in (output / STAGING).glob("*"))
    foreign = [name for name in half if not NAME.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"found {foreign[0]} in {output / STAGING}, which no run wrote there; expected a "
            "folder that is free or a run's own: name another --output"
        )
    for name in (STAGING, TRASH):
        if (output / name).is_dir():
            shutil.rmtree(output / name)
    return half


def _remove(output: Path, path: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it looks like a whole one."""
    trash = output / TRASH
    trash.mkdir(exist_ok=True)
    path.rename(trash / path.name)
    shutil.rmtree(trash)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a checkpoint's record, its last file, with the sizes of all others.

    Args:
        folder: The checkpoint's folder.
        record: JSON values.
    """
    text = json.dumps({**record, "files": measure_files(folder)}, indent=2) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's record.

    Args:
        folder: The checkpoint's folder.

    Returns:
        The record.

    Raises:
        ValueError: If the record or a file that it names is not as it was written.
    """
    record = load_json(folder / RECORD)
    lacking = [name for name in PROGRESS if not isinstance(record.get(name), int)]
    written = record.get("files", {})
    if lacking or not isinstance(written, dict):
        raise ValueError(
            f"{folder / RECORD} lacks {', '.join(lacking) or 'a table of files'}; expected what a "
            f"run wrote. {GO_ON.format(folder.name)}"
        )
    found = measure_files(folder)
    for name, size in written.items():
        if found.get(name) != size:
            raise ValueError(
                f"{folder / name}: found {found.get(name, 'no file')}, expected {size} bytes: the "
                f"checkpoint is damaged. {GO_ON.format(folder.name)}"
            )
    return record


def measure_files(folder: Path) -> dict[str, int]:
    """Measure a checkpoint's files, but for its record.

    Args:
        folder: The checkpoint's folder.

    Returns:
        Sizes in bytes by path within the folder.
    """
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / RECORD
    }


def put_in_place(output: Path, name: str) -> Path:
    """Give a checkpoint that is completely written its name.

    Args:
        output: The run's folder.
        name: The checkpoint's name.

    Returns:
        Its folder.
    """
    written, place = output / STAGING / name, output / name
    sync_tree(written)
    if place.exists():  # of a step that a resumed run has taken again
        _remove(output, place)
    written.rename(place)
    sync_folder(output)
    (output / STAGING).rmdir()
    return place


def remove_old(output: Path, num_kept: int) -> None:
    """Remove all but the newest complete checkpoints.

    Args:
        output: The run's folder.
        num_kept: How many stay, at least 1.
    """
    for path in list_checkpoints(output)[:-num_kept]:
        _remove(output, path)


@contextmanager
def explain_failure(output: Path) -> Iterator[None]:
    """Turn what a full disk makes libraries raise into one error, and clear what was half written.

    Args:
        output: The run's folder.

    Yields:
        None: Nothing.

    Raises:
        OSError: If writing failed.
    """
    try:
        yield
    except Exception as error:
        # torch raises RuntimeError and safetensors an error of its own where a write fails.
        is_torch = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
        is_safetensors = type(error).__name__ == "SafetensorError"
        if not (isinstance(error, OSError) or is_torch or is_safetensors):
            raise
        shutil.rmtree(output / STAGING, ignore_errors=True)
        kept = [path.name for path in list_checkpoints(output)]
        free = shutil.disk_usage(output).free
        advice = f"{kept[-1]} is whole: free some space and go on with --resume" if kept else ""
        raise OSError(
            f"could not write a checkpoint into {output} ({free:,} bytes free): {error}. "
            f"{advice or 'Free some space and start again.'}"
        ) from error
