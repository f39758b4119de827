"""Check training data before a GPU is rented: every row, its images, and its exact length.

The file is read twice: once to find its rows, once by workers that decode images and count tokens.
Memory does not grow with the file, only with the number of bad rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data_source import DataSource
from .row_conversations import IMAGE_MARK, parse_conversation
from .row_encoding import RowEncoder
from .row_faults import BadRow, RowFault
from .row_images import load_row_images
from .row_reading import describe, read_id
from .row_stores import RowStore, open_store

CHUNK_ROWS = 32
NUM_DUPLICATES_SHOWN = 5
PERCENTILES = (50, 90, 99, 100)


@dataclass
class DataReport:
    """What a check found in one source.

    Attributes:
        source: The file or dataset.
        num_rows: Rows, bad ones included.
        num_text_only: Good rows without an image.
        num_one_image: Good rows with one image.
        num_several_images: Good rows with more.
        num_duplicate_ids: Rows whose id an earlier row has; not a fault.
        duplicate_ids: The first few of those ids.
        num_cut: Good rows longer than the limit, whose end is cut in training; None if tokens were
            not counted.
        tokens: Percentile (50, 90, 99, 100) to tokens of good rows before cutting; None if tokens
            were not counted.
        bad_rows: The bad rows in order.
        error: Why the source cannot be read at all; None if it can.
    """

    source: str
    num_rows: int = 0
    num_text_only: int = 0
    num_one_image: int = 0
    num_several_images: int = 0
    num_duplicate_ids: int = 0
    duplicate_ids: list[Any] = field(default_factory=list)
    num_cut: int | None = None
    tokens: dict[int, int] | None = None
    bad_rows: list[BadRow] = field(default_factory=list)
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether every row can be trained on."""
        return not self.bad_rows and self.error is None


class _Finding(NamedTuple):
    """What a worker says about one row."""

    row_id: Any
    fault: BadRow | None
    num_images: int
    num_tokens: int


class _RowChecks(Dataset):
    """Findings about the rows of a source, one an index."""

    def __init__(
        self, store: RowStore, encoder: RowEncoder | None, template: str, opens_images: bool
    ) -> None:
        self.store = store
        self.encoder = encoder
        self.template = template
        self.opens_images = opens_images

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, place: int) -> _Finding:
        number, value = self.store.read(place)
        row_id = read_id(value)
        try:
            num_images, num_tokens = self._check(value)
        except RowFault as fault:
            return _Finding(row_id, describe(fault, self.store.name, number, value), 0, 0)
        return _Finding(row_id, None, num_images, num_tokens)

    def _check(self, value: Any) -> tuple[int, int]:
        """Go through all that training does with a row; returns its images and tokens."""
        if isinstance(value, RowFault):
            raise value
        source, encoder = self.store.source, self.encoder
        mark = encoder.processor.image_token if encoder else IMAGE_MARK
        conversation = parse_conversation(value, source.format, self.template, mark)
        num_images = len(conversation.images)
        images = load_row_images(conversation.images, source) if self.opens_images else []
        if encoder is None:
            return num_images, 0
        if not self.opens_images:
            height, width = encoder.processor.image_processor.output_size()
            images = [Image.new("RGB", (width, height))] * num_images
        return num_images, encoder.encode(conversation, images).num_tokens


def check_data(
    source: DataSource,
    *,
    processor: Any = None,
    template: str = "vicuna_v1",
    max_length: int | None = None,
    opens_images: bool = True,
    num_workers: int = 0,
    progress: bool = False,
) -> DataReport:
    """Check every row of a source.

    Args:
        source: The file or dataset.
        processor: The model's processor, for exact token counts; None counts none.
        template: "plain" (stage 1) or "vicuna_v1" (stage 2).
        max_length: Longest row in tokens; None takes the tokenizer's own limit. Needs a processor.
        opens_images: Whether to look for the images and decode them.
        num_workers: Processes that check rows; 0 checks in this one.
        progress: Whether to show progress on stderr.

    Returns:
        What was found; a source that cannot be read is reported, not raised.

    Raises:
        ValueError: If the options contradict each other.
    """
    if processor is None and max_length is not None:
        raise ValueError(
            f"found max_length {max_length} and no model, expected a model whose tokenizer counts "
            "the tokens. Pass --model, or leave --max-length out."
        )
    encoder = RowEncoder(processor, template, max_length) if processor is not None else None
    report = DataReport(source.path)
    try:
        store = open_store(source)
        for _ in tqdm(store.scan(), "finding rows", unit=" rows", disable=not progress):
            pass
        checks = _RowChecks(store, encoder, template, opens_images)
        _collect(checks, report, num_workers, progress)
    except (ImportError, OSError, ValueError) as error:
        report.error = str(error)
    return report


def _collect(checks: _RowChecks, report: DataReport, num_workers: int, progress: bool) -> None:
    """Count the findings of all rows."""
    tokens = array("q")
    seen: set[str] = set()
    loader = DataLoader(checks, batch_size=CHUNK_ROWS, num_workers=num_workers, collate_fn=list)
    with tqdm(None, "checking", len(checks), unit=" rows", disable=not progress) as bar:
        for findings in loader:
            for finding in findings:
                _count(finding, report, seen, tokens)
            bar.update(len(findings))
    if checks.encoder is not None:
        limit = checks.encoder.max_length
        report.num_cut = 0 if limit is None else sum(count > limit for count in tokens)
        report.tokens = compute_percentiles(tokens)


def _count(finding: _Finding, report: DataReport, seen: set[str], tokens: array) -> None:
    report.num_rows += 1
    if finding.row_id is not None:
        key = repr(finding.row_id)
        if key in seen:
            report.num_duplicate_ids += 1
            if len(report.duplicate_ids) < NUM_DUPLICATES_SHOWN:
                report.duplicate_ids.append(finding.row_id)
        seen.add(key)
    if finding.fault is not None:
        report.bad_rows.append(finding.fault)
        return
    tokens.append(finding.num_tokens)
    if not finding.num_images:
        report.num_text_only += 1
    elif finding.num_images == 1:
        report.num_one_image += 1
    else:
        report.num_several_images += 1


def compute_percentiles(counts: Sequence[int]) -> dict[int, int]:
    """Compute the percentiles of token counts, each one of the counts (nearest rank).

    Args:
        counts: Tokens of each row.

    Returns:
        Percentile to tokens; empty without rows.
    """
    ordered = sorted(counts)
    if not ordered:
        return {}
    ranks = {p: -(-p * len(ordered) // 100) for p in PERCENTILES}
    return {p: ordered[rank - 1] for p, rank in ranks.items()}
