"""What can be wrong with a row, and how it reaches the user: named, numbered and counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

# Every kind of fault, with what it means; `hyperllava data check --json` uses the same names.
FAULTS = {
    "malformed": "the row is not of a known form",
    "unknown_role": "a turn is neither the user's, the assistant's nor the system's",
    "turn_order": "two turns of one role follow each other, or a system turn is not first",
    "no_answer": "there is nothing to learn: no assistant turn",
    "empty_answer": "an assistant turn is empty",
    "empty_question": "a user turn holds neither text nor image",
    "image_count": "image marks and images differ in number",
    "image_in_answer": "an assistant or system turn holds an image mark",
    "image_path": "an image path leads out of the image folder",
    "missing_image": "an image file is not there",
    "broken_image": "an image cannot be decoded",
    "too_long": "images, or all answers, lie beyond max_length",
    "refused": "the processor refuses the row",
}
ON_BAD_ROW = ("stop", "skip")
NUM_SHOWN = 5


class RowFault(ValueError):
    """What is wrong with one row.

    Args:
        text: What was found, what was expected.
        kind: A key of `FAULTS`.
    """

    def __init__(self, text: str, kind: str = "malformed") -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on.

    Attributes:
        source: The file or dataset.
        number: Which row, counted from 1; in a JSONL file the number of the line.
        id: The row's own id; None if it has none.
        kind: A key of `FAULTS`.
        text: What was found, what was expected.
    """

    source: str
    number: int
    id: Any
    kind: str
    text: str

    def __str__(self) -> str:
        shown = "" if self.id is None else f" (id {repr(self.id)[:80]})"
        return f"{self.source}, row {self.number}{shown}: {self.text}"

    def to_error(self) -> ValueError:
        """Build the error that stops a run.

        Returns:
            An error that names the row, the fault and what can be done.
        """
        return ValueError(
            f"{str(self).rstrip('.')}. Correct or remove the row "
            f"(`hyperllava data check {self.source}`, with the run's --template, --model, "
            "--image-folder and --max-length, lists all bad rows), or "
            "set on_bad_row to 'skip' to train without it."
        )


def check_on_bad_row(value: str) -> None:
    """Check what is to be done about bad rows.

    Args:
        value: "stop" or "skip".

    Raises:
        ValueError: If it is neither.
    """
    if value not in ON_BAD_ROW:
        raise ValueError(f"found on_bad_row={value!r}, expected 'stop' or 'skip'")


class BadRowCounter:
    """Stop at the first bad row, or count bad rows and say how many there were.

    Args:
        on_bad_row: "stop" or "skip".
    """

    def __init__(self, on_bad_row: str) -> None:
        check_on_bad_row(on_bad_row)
        self.on_bad_row = on_bad_row
        self.num_bad_rows = 0
        self.first_bad_rows: list[BadRow] = []

    def add(self, row: BadRow) -> None:
        """Take note of a bad row.

        Args:
            row: The row.

        Raises:
            ValueError: If bad rows stop the run.
        """
        if self.on_bad_row == "stop":
            raise row.to_error()
        self.num_bad_rows += 1
        if len(self.first_bad_rows) < NUM_SHOWN:
            self.first_bad_rows.append(row)

    def log(self, num_rows: int) -> None:
        """Say once how many rows were left out, and show the first.

        Args:
            num_rows: How many rows there were, bad ones included.
        """
        if not self.num_bad_rows:
            return
        lines = [f"  {row}" for row in self.first_bad_rows]
        if self.num_bad_rows > len(lines):
            lines.append(f"  and {self.num_bad_rows - len(lines)} more")
        logger.warning(
            "%d of %d rows are bad and left out:\n%s",
            self.num_bad_rows,
            num_rows,
            "\n".join(lines),
        )
