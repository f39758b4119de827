"""The order of training rows: each once, one modality a megabatch, like lengths together."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperllava_hf.data import ModalityLengthSampler

LENGTHS = st.lists(st.integers(-50, 50).filter(bool), max_size=200)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 9), st.integers(0, 3))
def test_every_index_once_and_full_megabatches_of_one_modality(
    lengths: list[int], batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    sampler = ModalityLengthSampler(lengths, batch_size, world_size, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    size = batch_size * world_size
    with_images = sum(length > 0 for length in lengths)
    num_full = with_images // size + (len(lengths) - with_images) // size
    for place in range(num_full):
        megabatch = [lengths[i] for i in order[place * size : (place + 1) * size]]
        assert len({length > 0 for length in megabatch}) == 1
        assert all(abs(left) >= abs(right) for left, right in pairwise(megabatch))
    again = ModalityLengthSampler(lengths, batch_size, world_size, seed)
    again.set_epoch(epoch)
    assert list(again) == order == list(sampler)


def test_seeds_and_epochs_give_different_orders() -> None:
    lengths = [(-1) ** i * (1 + i * 37 % 91) for i in range(200)]
    orders = set()
    for seed in range(3):
        sampler = ModalityLengthSampler(lengths, 4, 2, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 9


def test_batches_pad_far_less_than_in_random_order() -> None:
    lengths = [1 + i * i * 31 % 997 for i in range(4000)]

    def count_padding(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, len(order), 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    grouped = count_padding(list(ModalityLengthSampler(lengths, 8, 2, 0)))
    assert grouped < 0.1 * count_padding(list(range(len(lengths))))


@pytest.mark.parametrize(("sizes", "pattern"), [((0, 1), "batch_size 0"), ((1, 0), "world_size 0")])
def test_sizes_below_one_are_refused(sizes: tuple[int, int], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        ModalityLengthSampler([1, -1], *sizes)


def test_a_row_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length 0 for row 2"):
        ModalityLengthSampler([1, -1, 0], 2)
