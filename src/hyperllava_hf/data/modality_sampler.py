"""Batches of one modality and of similar length, as LLaVA trains on them (`group_by_modality`).

A megabatch is what all ranks take in one step. Rows with images and rows without are shuffled
apart, sorted by length within pools of megabatches, cut into megabatches, and those are shuffled:

    rows        -5 9 -3 8 7 -4 9 6      (lengths; negative: no image)
    megabatches [9 9] [8 7] [-5 -4]     full ones, in random order
    the end     [6 -3]                  what is left of both modalities

so a step pads little and no rank waits for a vision tower that the others do not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Pools of this many megabatches are sorted as a whole: the larger, the less padding and the less
# chance in which rows meet.
POOL_MEGABATCHES = 50


class EpochSampler(Sampler[int]):
    """A sampler whose order depends on seed and epoch alone.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch.

        Args:
            epoch: Counted from 0.
        """
        self.epoch = epoch

    def build_generator(self) -> torch.Generator:
        """Build the generator of the epoch's order."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)


class ModalityLengthSampler(EpochSampler):
    """Give every index once, in an order that depends on seed and epoch alone.

    Args:
        lengths: Tokens of each row, negative for rows without images.
        batch_size: Rows a rank takes in one step.
        world_size: Ranks.
        seed: Of the order.

    Raises:
        ValueError: If a length is 0, or a size is less than 1.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, world_size: int = 1, seed: int = 0
    ) -> None:
        if batch_size < 1 or world_size < 1:
            raise ValueError(
                f"found batch_size {batch_size} and world_size {world_size}, expected at least 1"
            )
        if not all(lengths):
            raise ValueError(
                f"found length 0 for row {list(lengths).index(0)}, expected tokens, negative for a "
                "row without images"
            )
        super().__init__(seed)
        self.lengths = lengths
        self.megabatch_size = batch_size * world_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = self.build_generator()
        full: list[list[int]] = []
        rest: list[int] = []
        with_images = [i for i, length in enumerate(self.lengths) if length > 0]
        without_images = [i for i, length in enumerate(self.lengths) if length < 0]
        for indices in (with_images, without_images):
            megabatches, left = self._group(indices, generator)
            full += megabatches
            rest += left
        order = torch.randperm(len(full), generator=generator).tolist()
        for place in order:
            yield from full[place]
        yield from rest

    def _group(
        self, indices: list[int], generator: torch.Generator
    ) -> tuple[list[list[int]], list[int]]:
        """Cut one modality into full megabatches; returns them and what is left."""
        size = self.megabatch_size
        permutation = torch.randperm(len(indices), generator=generator).tolist()
        shuffled = [indices[place] for place in permutation]
        num_full = len(shuffled) // size * size
        megabatches = []
        for start in range(0, num_full, size * POOL_MEGABATCHES):
            pool = shuffled[start : min(start + size * POOL_MEGABATCHES, num_full)]
            pool.sort(key=lambda index: abs(self.lengths[index]), reverse=True)
            megabatches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return megabatches, shuffled[num_full:]
