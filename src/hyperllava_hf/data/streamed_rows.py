"""Rows read in order without an index, shared out over loader workers and ranks.

With W ranks, good rows come in rounds of W, one a rank; a rank's rounds go to its workers in turn:

    row     0   1   2   3   4   5   6        2 ranks, 2 workers a rank
    rank    0   1   0   1   0   1   0
    worker  0   0   1   1   0   0   1        rank 1 repeats row 6 for worker 1, to stay in step

Every worker reads the whole text and encodes its share. Which rows a worker gets depends on nothing
but the data, the number of ranks and the number of workers, so a run goes on where it stopped by
taking and throwing away as many batches as it had seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .data_source import DataSource
from .row_encoding import Row, RowEncoder
from .row_faults import BadRowCounter, RowFault, check_on_bad_row
from .row_images import check_image_places
from .row_reading import describe, encode_row, parse_row
from .row_stores import RowStore, StoredRow, open_store


class StreamedRows(IterableDataset):
    """The rows of one or several sources, in order.

    Args:
        sources: Where the rows are from.
        encoder: Makes tokens and pixels of a row.
        on_bad_row: "stop" or "skip".
        rank: Which share of the rows this process reads; None asks torch.distributed when the
            reading begins.
        world_size: How many shares there are; 1 if something behind this dataset (accelerate's
            dispatcher) shares the rows out.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        encoder: RowEncoder,
        on_bad_row: str = "stop",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_on_bad_row(on_bad_row)
        if not sources:
            raise ValueError("found no data source, expected at least one")
        self.encoder = encoder
        self.on_bad_row = on_bad_row
        self.rank = rank
        self.world_size = world_size
        self._stores = [open_store(source, streaming=True) for source in sources]

    def __iter__(self) -> Iterator[Row]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        rank, world_size = self._get_share()
        share = _Share(self.encoder, BadRowCounter(self.on_bad_row))
        for store in self._stores:
            # Of a stream of many files, every worker reads its own; else every worker reads all.
            is_split = store.can_split(num_workers)
            part, of = (0, 1) if is_split else (worker, num_workers)
            rows = store.stream(worker, num_workers) if is_split else store.stream()
            counts = rank == 0 and (is_split or worker == 0)
            last, place = None, -1
            for place, row in enumerate(share.list_good(store, rows, counts)):
                last = row
                if place % world_size == rank and place // world_size % of == part:
                    yield from share.encode(store, row)
            # Ranks that the last round does not reach.
            missing = (place + 1) % world_size
            if last is not None and 0 < missing <= rank and place // world_size % of == part:
                yield from share.encode(store, last, is_repeated=True)
        if share.owes_all:
            share.borrow(self._stores)
        yield from share.finish()

    def _get_share(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        if self.world_size is not None:
            return self.rank or 0, self.world_size
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1


class _Share:
    """What one worker encodes; where a row is bad, its next good one stands in."""

    def __init__(self, encoder: RowEncoder, counter: BadRowCounter) -> None:
        self.encoder = encoder
        self.counter = counter
        self.num_rows = 0
        self._num_left_out = 0  # rows that no worker gets, to be counted with the next row
        self._owed: list[int] = []  # for each own row that turned out bad, what it counts
        self._last: Row | None = None
        self._held: Row | None = None  # given with the next one, so that the last can count

    def list_good(
        self, store: RowStore, rows: Iterator[StoredRow], counts: bool
    ) -> Iterator[StoredRow]:
        """Give the rows whose text is good: where every worker sees all, one counts the bad."""
        for row in rows:
            self.num_rows += 1
            try:
                conversation = parse_row(row.value, store.source, self.encoder)
                check_image_places(conversation.images, store.source)
            except RowFault as fault:
                bad = describe(fault, store.name, row.number, row.value)
                if counts or self.counter.on_bad_row == "stop":
                    self.counter.add(bad)
                    self._num_left_out += 1
                continue
            yield row

    def encode(
        self, store: RowStore, stored: StoredRow, is_repeated: bool = False
    ) -> Iterator[Row]:
        """Give a row, once for itself and once for each bad one before it."""
        try:
            row = encode_row(stored.value, stored.number, store.source, self.encoder)
        except RowFault as fault:
            # What fills the last round has been counted by the rank whose row it is.
            if not is_repeated:
                self.counter.add(describe(fault, store.name, stored.number, stored.value))
            self._owed.append(0 if is_repeated else 1)
            return
        self._last = row
        yield from self._settle()
        yield from self._give(row, 0)

    @property
    def owes_all(self) -> bool:
        """Whether every row of the share was bad, so that none of it can stand in."""
        return bool(self._owed) and self._last is None

    def borrow(self, stores: list[RowStore]) -> None:
        """Find a good row of another share to stand in."""
        for store in stores:
            for stored in store.stream():
                try:
                    row = encode_row(stored.value, stored.number, store.source, self.encoder)
                except RowFault:
                    continue
                self._last = row
                return
        raise ValueError(
            f"no row of {', '.join(store.name for store in stores)} can be trained on; the first "
            f"bad one is {self.counter.first_bad_rows[0]}"
        )

    def finish(self) -> Iterator[Row]:
        """Give what is owed and held, and say once what was left out."""
        yield from self._settle()
        if self._held is not None:
            self._held.num_skipped += self._num_left_out
            yield self._held
        self.counter.log(self.num_rows)

    def _settle(self) -> Iterator[Row]:
        """Give the last good row once for each bad one that is owed."""
        while self._owed and self._last is not None:
            yield from self._give(self._last, self._owed.pop(0))

    def _give(self, row: Row, num_skipped: int) -> Iterator[Row]:
        held, self._held = self._held, replace(row, num_skipped=num_skipped + self._num_left_out)
        self._num_left_out = 0
        if held is not None:
            yield held
