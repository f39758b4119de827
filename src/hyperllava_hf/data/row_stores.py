"""One way to read every source: scan its rows once in order, then read one by its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from .data_source import DataSource
from .json_rows import JsonRowFile


class StoredRow(NamedTuple):
    """A row as it is stored.

    Attributes:
        number: Counted from 1; in a JSONL file the number of the line.
        value: The row, or the `RowFault` that keeps it from being read.
    """

    number: int
    value: Any


class RowStore(Protocol):
    """What every kind of source can do.

    Attributes:
        source: Where the rows are.
        name: What messages to the user call it.
    """

    source: DataSource
    name: str

    def __len__(self) -> int:
        """How many rows a scan found."""

    def scan(self) -> Iterator[StoredRow]:
        """Give every row once in order; image bytes may be missing."""

    def can_split(self, num_parts: int) -> bool:
        """Whether `stream` can give a part without reading the others."""

    def stream(self, part: int = 0, num_parts: int = 1) -> Iterator[StoredRow]:
        """Give every row of a part once in order, whole, without keeping where it lies."""

    def read(self, place: int) -> StoredRow:
        """Give one row whole."""


class JsonStore:
    """Rows of a JSON or JSONL file.

    Args:
        source: The file.
    """

    def __init__(self, source: DataSource) -> None:
        self.source = source
        self.name = source.path
        self._file = JsonRowFile(source.path)

    def __len__(self) -> int:
        return len(self._file)

    def scan(self) -> Iterator[StoredRow]:
        """Give every row once in order and note where it lies.

        Yields:
            The rows.
        """
        for row in self._file.scan():
            yield StoredRow(row.number, row.value)

    def can_split(self, num_parts: int) -> bool:
        """Tell whether a part can be read without the others.

        Args:
            num_parts: How many parts there are.

        Returns:
            No: the rows of one file follow one another.
        """
        return num_parts == 1

    def stream(self, part: int = 0, num_parts: int = 1) -> Iterator[StoredRow]:
        """Give every row once in order.

        Args:
            part: 0.
            num_parts: 1.

        Yields:
            The rows.
        """
        for row in self._file.stream():
            yield StoredRow(row.number, row.value)

    def read(self, place: int) -> StoredRow:
        """Give one row.

        Args:
            place: Its place among the scanned rows, from 0.

        Returns:
            The row.
        """
        return StoredRow(self._file.numbers[place], self._file.read(place))


def open_store(source: DataSource, streaming: bool = False) -> RowStore:
    """Open a source.

    Args:
        source: The source.
        streaming: Whether a dataset on the Hub is read without being downloaded first.

    Returns:
        Its rows.

    Raises:
        OSError: If it is not there.
        ValueError: If it is not of a known kind.
    """
    if source.is_json:
        return JsonStore(source)
    from .hub_rows import HubStore

    return HubStore(source, streaming)
