"""JSON and JSONL files read row by row: a scan notes where each row lies, a read goes there.

Neither form is ever held whole: of an array of 665,000 rows (about 1 GB) only 24 bytes a row stay
in memory, and loader workers share nothing but the path. A .gz file has no places to go to, so its
text stays in memory, decompressed.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .row_faults import RowFault

BLOCK_BYTES = 1 << 22
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
_NUM_SHOWN = 60


class ScannedRow(NamedTuple):
    """A row as a scan meets it.

    Attributes:
        number: Counted from 1; in a JSONL file the number of the line.
        start: Where it begins, in bytes of the decompressed file.
        end: Where it ends.
        value: The parsed row, or the fault that keeps it from being parsed.
    """

    number: int
    start: int
    end: int
    value: Any


class JsonRowFile:
    """The rows of a .json or .jsonl file, plain or gzipped.

    Args:
        path: The file.

    Raises:
        OSError: If the file is not there or cannot be read.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"there is no data file {path!r}; expected a .json or .jsonl file. Check the path."
            )
        self.path = path
        name = path.lower()
        self.is_gzipped = name.endswith(".gz")
        self.is_array = name.removesuffix(".gz").endswith(".json")
        self.numbers = array("q")
        self._starts = array("q")
        self._ends = array("q")
        self._faulty: set[int] = set()
        self._unpacked: bytes | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def scan(self) -> Iterator[ScannedRow]:
        """Read the file once from its beginning, and note where every row lies.

        Yields:
            Every row in order, those that are no JSON included.

        Raises:
            ValueError: If the file is empty, is no array of rows, or breaks off.
        """
        self.numbers, self._starts, self._ends = array("q"), array("q"), array("q")
        self._faulty = set()
        for row in self.stream():
            if isinstance(row.value, RowFault):
                self._faulty.add(len(self.numbers))
            self.numbers.append(row.number)
            self._starts.append(row.start)
            self._ends.append(row.end)
            yield row

    def stream(self) -> Iterator[ScannedRow]:
        """Read the file once from its beginning, noting nothing.

        Yields:
            Every row in order, those that are no JSON included.

        Raises:
            ValueError: If the file is empty, is no array of rows, or breaks off.
        """
        rows = _read_array if self.is_array else _read_lines
        found = False
        with self._open() as stream:
            try:
                for row in rows(stream, self.path):
                    found = True
                    yield row
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(
                    f"{self.path} is not a whole gzip file ({error}); expected one that `gzip -t` "
                    "accepts. Copy or download it again."
                ) from error
        if not found:
            raise ValueError(f"{self.path} holds no rows; expected at least one conversation")

    def read(self, index: int) -> Any:
        """Read one row again.

        Args:
            index: Its place among the scanned rows, from 0.

        Returns:
            The parsed row, or the fault of one that was no JSON when it was scanned.

        Raises:
            ValueError: If the file changed since it was scanned.
        """
        start, end = self._starts[index], self._ends[index]
        try:
            return parse_json(self._read_bytes(start, end))
        except RowFault as error:
            if index in self._faulty:
                return error
            raise ValueError(
                f"{self.path}, row {self.numbers[index]}: {error.text}, though it was read before; "
                "the file changed while it was in use. Start again with a file that stays."
            ) from error

    def _read_bytes(self, start: int, end: int) -> bytes:
        if self.is_gzipped:
            if self._unpacked is None:
                with self._open() as stream:
                    self._unpacked = stream.read()
            return self._unpacked[start:end]
        # Opened anew each time: forked workers would share one file, and with it one position.
        with open(self.path, "rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def _open(self) -> BinaryIO:
        if self.is_gzipped:
            return io.BufferedReader(gzip.GzipFile(self.path, "rb"))
        return open(self.path, "rb")


def parse_json(data: bytes) -> Any:
    """Parse one row.

    Args:
        data: Its text.

    Returns:
        The value.

    Raises:
        RowFault: If it is no JSON.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowFault(f"byte {error.start} of the row is not UTF-8, expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RowFault(
            f"no JSON: {error.msg} at character {error.pos} of {_show(error.doc)}, expected one "
            "object"
        ) from None
    except (ValueError, RecursionError) as error:
        # Integers of thousands of digits, and nesting beyond the parser's stack.
        raise RowFault(f"no JSON that can be read: {error}, expected one object") from None


def _show(text: str) -> str:
    return repr(text if len(text) <= _NUM_SHOWN else text[:_NUM_SHOWN] + "...")


def _read_lines(stream: BinaryIO, path: str) -> Iterator[ScannedRow]:
    """Read JSON lines; blank lines are no rows, but count as lines."""
    start = 0
    for number, line in enumerate(stream, 1):
        end = start + len(line)
        text = line.strip(b" \t\r\n")
        if number == 1 and text.removeprefix(codecs.BOM_UTF8).startswith(b"["):
            raise ValueError(
                f"{path} begins with '[' like a JSON array; expected one object a line. Name it "
                ".json."
            )
        if text:
            try:
                value = parse_json(text)
            except RowFault as fault:
                value = fault
            yield ScannedRow(number, start, end, value)
        start = end


class _Window:
    """The part of a text file that is being parsed, and where it lies in the file."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.stream = stream
        self.path = path
        self.text = ""
        self.position = 0
        self.is_complete = False
        self._bytes_before = 0  # of the file, before self.text
        self._counted = 0  # characters of self.text that _bytes_before + _bytes_counted covers
        self._bytes_counted = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def byte(self, position: int | None = None) -> int:
        """Where a position of the text lies in the file, in bytes; positions must not go back."""
        position = self.position if position is None else position
        self._bytes_counted += len(self.text[self._counted : position].encode("utf-8"))
        self._counted = position
        return self._bytes_before + self._bytes_counted

    def extend(self) -> None:
        """Read on, and forget what is parsed."""
        at = self.byte()
        block = self.stream.read(max(BLOCK_BYTES, len(self.text) - self.position))
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} holds bytes that are not UTF-8 beyond byte {at} ({error.reason}); "
                "expected UTF-8 text. Save it as UTF-8."
            ) from None
        self.text = self.text[self.position :] + more
        self._bytes_before, self._bytes_counted, self._counted, self.position = at, 0, 0, 0
        self.is_complete = not block

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if self.is_complete:
                return ""
            self.extend()

    def parse(self) -> Any:
        """Parse the value that begins here and go behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # Near the end of what is read, or in a string without an end, the rest may be
                # what is missing.
                is_open = "Unterminated string" in error.msg or error.pos > len(self.text) - 16
                if self.is_complete or not is_open:
                    raise
            else:
                # A number may go on: "1.5e+" parses as 1.5, two characters before its end.
                if len(self.text) - end > 2 or self.is_complete:
                    self.position = end
                    return value
            self.extend()


def _read_array(stream: BinaryIO, path: str) -> Iterator[ScannedRow]:
    """Read the elements of one JSON array through a window over the file."""
    window = _Window(stream, path)
    first = window.peek()
    if first == codecs.BOM_UTF8.decode("utf-8"):
        window.position += 1
        first = window.peek()
    if first != "[":
        raise ValueError(_describe_no_array(window, first))
    window.position += 1
    number = 0
    if window.peek() == "]":
        return
    while True:
        number += 1
        window.peek()
        start = window.byte()
        try:
            value = window.parse()
        except (ValueError, RecursionError) as error:
            raise _broken_array(window, number, error) from None
        yield ScannedRow(number, start, window.byte(), value)
        sign = window.peek()
        if sign not in (",", "]"):
            raise _broken_array(window, number, None)
        window.position += 1
        if sign == "]":
            break
    if window.peek():
        raise ValueError(
            f"{path} goes on with {_show(window.text[window.position :])} at byte {window.byte()}, "
            f"behind the array of {number} rows; expected its end. Remove the rest."
        )


def _describe_no_array(window: _Window, first: str) -> str:
    path = window.path
    if not first:
        return f"{path} is empty; expected a JSON array of rows. Check the path."
    if first == "{":
        return (
            f"{path} is a JSON object; expected an array of rows, [{{...}}, ...]. Take the list of "
            "rows out of it; if every line is an object, name the file .jsonl."
        )
    return (
        f"{path} begins with {_show(window.text[window.position :])}; expected a JSON array of "
        "rows, [{...}, ...]"
    )


def _broken_array(window: _Window, number: int, error: Exception | None) -> ValueError:
    if window.is_complete and not window.text[window.position :].strip():
        what = f"is cut off behind row {number}"
    elif isinstance(error, json.JSONDecodeError):
        # A whole array ends with its bracket.
        rest = window.text.rstrip()
        near_end = window.is_complete and (error.pos >= len(rest) or not rest.endswith("]"))
        at = window.byte(error.pos)
        what = f"{'is cut off' if near_end else 'is no JSON'} in row {number}, byte {at}"
        what += f" ({error.msg})"
    elif error is not None:
        what = f"cannot be read in row {number} ({error})"
    else:
        what = (
            f"has {_show(window.text[window.position :])} behind row {number}, byte {window.byte()}"
        )
    return ValueError(
        f"{window.path} {what}; expected a whole JSON array of rows. Copy, download or write the "
        "file again."
    )
