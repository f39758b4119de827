"""Hash a conversion's inputs on a thread of its own, while the result is written."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

from .shard_writer import FileRecord, hash_file


class _Stopped(Exception):
    """The result is not wanted any more."""


@contextmanager
def hash_in_background(
    inputs: Mapping[str, Path], wanted: bool
) -> Iterator[Callable[[], list[FileRecord]]]:
    """Hash files while the block runs.

    Args:
        inputs: the files by the names that their records get.
        wanted: whether to hash them; otherwise their sizes alone are recorded.

    Yields:
        A function that waits for the records.
    """
    stopped = Event()

    def check(count: int) -> None:
        if stopped.is_set():
            raise _Stopped

    def hash_all() -> list[FileRecord]:
        return [replace(hash_file(path, check), name=name) for name, path in inputs.items()]

    if not wanted:
        sizes = [FileRecord(name, path.stat().st_size, None) for name, path in inputs.items()]
        yield lambda: sizes
        return
    with ThreadPoolExecutor(1) as pool:
        records = pool.submit(hash_all)
        try:
            yield records.result
        finally:
            stopped.set()
