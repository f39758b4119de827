"""A folder that appears whole or not at all.

    DEST                     absent, or the finished folder
    .DEST.converting         what is being written; renamed to DEST at the end
    .DEST.replaced           the old DEST between the two renames of --overwrite
    .DEST.lock               held while one process writes to DEST

An interrupted run leaves DEST as it was; the next one clears what it left.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def raise_if_inside(destination: Path, *sources: Path) -> None:
    """Check that writing a folder touches no source.

    Args:
        destination: where to write.
        *sources: folders or files that are read.

    Raises:
        ValueError: if the destination is a source, inside one, or holds one.
    """
    target = destination.resolve()
    for source in sources:
        place = source.resolve()
        if target == place or place in target.parents or target in place.parents:
            raise ValueError(
                f"{destination} is, lies in or holds {source}, which is read; expected another "
                "folder: a source is never written to"
            )


def raise_if_taken(destination: Path, may_overwrite: bool) -> None:
    """Check that a folder may be written.

    Args:
        destination: the folder.
        may_overwrite: whether what is there may be replaced.

    Raises:
        ValueError: if it is a file, or holds something that may not be replaced.
    """
    if destination.exists() and not destination.is_dir():
        raise ValueError(f"{destination} is a file; expected a folder that does not exist yet")
    if destination.is_dir() and any(destination.iterdir()) and not may_overwrite:
        raise ValueError(
            f"{destination} is not empty; expected a new folder: name another, or pass --overwrite "
            "(overwrite=True) to replace it once the new one is complete"
        )


def raise_if_full(folder: Path, num_bytes: int) -> None:
    """Check that a disk has room before anything is written.

    Args:
        folder: a folder on the disk, which may not exist yet.
        num_bytes: what will be written.

    Raises:
        ValueError: if the disk has less.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ValueError(
            f"{existing} has {free:,} bytes free, but {num_bytes:,} are to be written; free some, "
            "or name a folder on another disk"
        )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (their contents are synced by who wrote them)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(path: Path) -> list[Path]:
    """Make the folders above a path.

    Args:
        path: the path.

    Returns:
        Those that were not there, the innermost first.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def stage(destination: Path, may_overwrite: bool = False) -> Iterator[Path]:
    """Write a folder under another name and put it in place when everything is there.

    Args:
        destination: the folder.
        may_overwrite: whether what is there may be replaced.

    Yields:
        The folder to write into.

    Raises:
        ValueError: if the destination may not be written, or another process writes to it.
    """
    destination = destination.absolute()
    created = make_parents(destination)
    work = destination.with_name(f".{destination.name}.converting")
    replaced = destination.with_name(f".{destination.name}.replaced")
    try:
        lock = FileLock(destination.with_name(f".{destination.name}.lock"), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is writing to {destination}; expected to be the only one: wait for "
            "it, or name another folder"
        ) from error
    try:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        raise_if_taken(destination, may_overwrite)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        sync_folder(work)
        shutil.rmtree(replaced, ignore_errors=True)
        if destination.exists():
            destination.rename(replaced)
        work.rename(destination)
        sync_folder(destination.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        # Removed while it is held, so no one else can hold a lock on a file without a name.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if not destination.exists():
            for parent in created:
                with suppress(OSError):
                    parent.rmdir()
