"""In what order rows are trained on: samplers whose order depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset

from ..data.modality_sampler import EpochSampler


class ShuffledSampler(EpochSampler):
    """Give every index once, shuffled anew each epoch.

    Args:
        num_rows: How many rows.
        seed: Of the order.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        super().__init__(seed)
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.num_rows, generator=self.build_generator()).tolist()


class EndlessRows(IterableDataset):
    """Streamed rows that begin again when they end, so that a place in them is a row count.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: IterableDataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[object]:
        while True:
            is_empty = True
            for row in self.rows:
                is_empty = False
                yield row
            if is_empty:
                return
