"""Rows of LLaVA data for training: checked when they are opened, read when they are asked for.

`Rows` is map-style and holds places, not rows: text is read, images are decoded and both are
encoded in `__getitem__`, which a DataLoader calls in its workers. `open_rows` reads every row's
text once. What is wrong with that, or with the place of an image, stops the run or leaves the row
out; what only an image's bytes or the exact token count tell is found later, and then the next good
row stands in, so that batches keep their size and ranks stay in step.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
from array import array
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from ..processing import HyperLlavaProcessor
from .data_source import DataSource
from .row_encoding import Row, RowEncoder
from .row_faults import BadRow, BadRowCounter, RowFault, check_on_bad_row
from .row_images import check_image_places
from .row_lengths import LengthEstimator
from .row_reading import describe, encode_row, parse_row, summarize
from .row_stores import RowStore, open_store
from .streamed_rows import StreamedRows

logger = logging.getLogger(__name__)


class Rows(Dataset):
    """The good rows of one or several sources, in their order.

    Args:
        sources: Where the rows are from.
        encoder: Makes tokens and pixels of a row.
        on_bad_row: "stop" or "skip".

    Attributes:
        num_bad_rows: Rows left out because of their text or of an image that is not there.
        lengths: Estimated tokens of each row, negative for rows without images.
        fingerprint: sha256 over the texts and image names of the rows, in order.
    """

    def __init__(
        self, sources: Sequence[DataSource], encoder: RowEncoder, on_bad_row: str = "stop"
    ) -> None:
        check_on_bad_row(on_bad_row)
        if not sources:
            raise ValueError("found no data source, expected at least one")
        self.encoder = encoder
        self.on_bad_row = on_bad_row
        self._stores: list[RowStore] = []
        self._kept: list[array] = []  # of each source, places of its good rows
        self._ends: list[int] = []  # good rows up to and with each source
        self._logged: set[tuple[str, int]] = set()
        counter = BadRowCounter(on_bad_row)
        estimator = LengthEstimator(encoder.processor, encoder.template)
        digest = hashlib.sha256()
        num_rows = sum(self._add(source, counter, estimator, digest) for source in sources)
        self.lengths = estimator.estimate()
        self.num_bad_rows = counter.num_bad_rows
        self.fingerprint = digest.hexdigest()
        counter.log(num_rows)
        if not self.lengths:
            raise ValueError(
                f"none of the {num_rows} rows of {', '.join(s.path for s in sources)} can be "
                "trained on. `hyperllava data check` says why."
            )

    def _add(
        self, source: DataSource, counter: BadRowCounter, estimator: LengthEstimator, digest: Any
    ) -> int:
        """Check every row of a source; returns how many there were."""
        store = open_store(source)
        kept = array("q")
        place = -1
        for place, stored in enumerate(store.scan()):
            try:
                conversation = parse_row(stored.value, source, self.encoder)
                check_image_places(conversation.images, source)
            except RowFault as fault:
                counter.add(describe(fault, store.name, stored.number, stored.value))
                continue
            kept.append(place)
            estimator.add(conversation)
            digest.update(summarize(conversation))
        self._stores.append(store)
        self._kept.append(kept)
        self._ends.append(len(kept) + (self._ends[-1] if self._ends else 0))
        return place + 1

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        """Read, decode and encode a row.

        Args:
            index: Its place among the good rows.

        Returns:
            The row; where it is bad and bad rows are skipped, the next good one.

        Raises:
            IndexError: If there is no such row.
            ValueError: If the row is bad and bad rows stop the run.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"found index {index}, expected less than {len(self)}")
        for num_skipped in range(len(self)):
            found = self._read((index + num_skipped) % len(self))
            if isinstance(found, Row):
                found.num_skipped = num_skipped
                return found
            if self.on_bad_row == "stop":
                raise found.to_error()
            self._log_once(found)
        raise ValueError(
            f"none of {len(self)} rows can be trained on: their images cannot be decoded or do not "
            "fit. `hyperllava data check` says why."
        )

    def _read(self, index: int) -> Row | BadRow:
        """Read one row, or say what is wrong with it."""
        which = bisect.bisect_right(self._ends, index)
        store, kept = self._stores[which], self._kept[which]
        place = kept[index - (self._ends[which] - len(kept))]
        number, value = store.read(place)
        try:
            return encode_row(value, number, store.source, self.encoder)
        except RowFault as fault:
            return describe(fault, store.name, number, value)

    def _log_once(self, row: BadRow) -> None:
        if (row.source, row.number) not in self._logged:
            self._logged.add((row.source, row.number))
            logger.warning("A bad row is left out, the next good one stands in: %s", row)


def open_rows(
    sources: Sequence[DataSource],
    *,
    processor: HyperLlavaProcessor,
    template: str,
    max_length: int | None,
    on_bad_row: str = "stop",
    streaming: bool = False,
) -> Rows | StreamedRows:
    """Open training data.

    Args:
        sources: Files and datasets, read one after the other.
        processor: The model's processor.
        template: "plain" (stage 1) or "vicuna_v1" (stage 2).
        max_length: Longest row in tokens; None takes the tokenizer's own limit, if it states one.
        on_bad_row: "stop" raises at the first bad row, "skip" leaves bad rows out and counts them.
        streaming: Whether to read in order without an index, for data that does not fit a disk.

    Returns:
        The rows; streamed ones have no length.

    Raises:
        OSError: If a file is not there.
        ValueError: If a source cannot be read, or a row is bad and bad rows stop the run.
    """
    encoder = RowEncoder(processor, template, max_length)
    if streaming:
        return StreamedRows(sources, encoder, on_bad_row)
    return Rows(sources, encoder, on_bad_row)
