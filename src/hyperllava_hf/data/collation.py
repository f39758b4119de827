"""A batch from rows: padded on the right, pixels stacked, skipped rows counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..processing import HyperLlavaProcessor
from ..processing.labels_hyperllava import IGNORED_LABEL
from .row_encoding import COLUMNS, Row, RowEncoder
from .row_faults import check_on_bad_row


class ConversationCollator:
    """Make the model's arguments from rows of `Rows` or `StreamedRows`.

    Args:
        processor: The processor that the rows were encoded with.
        template: The chat template of the rows.
        max_length: The limit of the rows; None takes the tokenizer's own.
        on_bad_row: "skip" adds `num_skipped_rows` to the batch.
    """

    def __init__(
        self,
        processor: HyperLlavaProcessor,
        template: str,
        max_length: int | None,
        on_bad_row: str = "stop",
    ) -> None:
        check_on_bad_row(on_bad_row)
        self.encoder = RowEncoder(processor, template, max_length)
        self.on_bad_row = on_bad_row
        self.padding = {
            "input_ids": processor.tokenizer.pad_token_id,
            "labels": IGNORED_LABEL,
            "guidance_mask": 0,
        }

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate a batch.

        Args:
            rows: At least one row.

        Returns:
            `input_ids`, `attention_mask`, `labels` and `guidance_mask` of shape (rows, length),
            `pixel_values` of shape (images, 3, height, width) if there are images, and, where bad
            rows are skipped, `num_skipped_rows`, a scalar.

        Raises:
            ValueError: If there is no row, or a row is longer than the limit.
        """
        if not rows:
            raise ValueError("found an empty batch, expected at least one row")
        length = max(len(row) for row in rows)
        limit = self.encoder.max_length
        if limit is not None and length > limit:
            raise ValueError(
                f"found a row of {length} tokens, expected at most {limit}: the rows were opened "
                "with another max_length than the collator"
            )
        batch = {name: self._pad(name, rows, length) for name in COLUMNS}
        attended = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        batch["attention_mask"] = torch.tensor(attended)
        pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
        if pixels:
            batch["pixel_values"] = torch.from_numpy(np.concatenate(pixels))
        if self.on_bad_row == "skip":
            batch["num_skipped_rows"] = torch.tensor(sum(row.num_skipped for row in rows))
        return batch

    def _pad(self, name: str, rows: Sequence[Row], length: int) -> torch.Tensor:
        fill = self.padding[name]
        columns = [getattr(row, name) for row in rows]
        return torch.tensor([column + [fill] * (length - len(column)) for column in columns])
