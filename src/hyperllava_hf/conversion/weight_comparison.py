"""Every tensor of the result against the reference, a few rows at a time.

A run on fixed inputs does not read every value of a checkpoint: most rows of the embedding stand
still, and a layer of the vision tower above the features is computed for nothing. So the values
are compared too, and where a run differs, this names the tensor.

Error model, for weights of largest value m, stored and written in dtypes whose unit roundoff (half
the distance from 1 to the next number) is at most u:

    copied or widened       0
    written in another one  u m                   rounded once
    LoRA of rank r, delta   4 u m + 2 r u32 m     the update and the sum are each rounded once and
                                                  are at most 2 m; r products summed in float32

and below the smallest normal number the distance of numbers is constant, half of which is added.
"""

from dataclasses import dataclass

import torch

from .block_outputs import measure_difference
from .reference_weights import EMBEDDING, HEAD, ReferenceWeights, split_rows

# A handful of copies of so many values are alive at a time.
CHUNK_VALUES = 2**22
UPDATE_ROUNDINGS = 4


@dataclass(frozen=True)
class WeightDifference:
    """One tensor of the result against the reference.

    Attributes:
        key: its name.
        largest: the largest absolute difference.
        row: the row with it.
        tolerance: what the error model allows.
    """

    key: str
    largest: float
    row: int
    tolerance: float

    @property
    def is_allowed(self) -> bool:
        """Whether the error model allows the difference."""
        return self.largest <= self.tolerance


def count_roundings(reference: ReferenceWeights, result: ReferenceWeights, key: str) -> float:
    """Return the relative error that the error model allows a tensor.

    Args:
        reference: the source's weights.
        result: the result's.
        key: the tensor's name.

    Returns:
        The error, relative to the tensor's largest value; 0 where none is allowed.
    """
    stored, written, rank = reference.dtype(key), result.dtype(key), reference.rank(key)
    if rank == 0:
        return 0.0 if torch.promote_types(stored, written) == written else _roundoff(written)
    unit = max(_roundoff(stored), _roundoff(written))
    return UPDATE_ROUNDINGS * unit + 2 * rank * _roundoff(torch.float32)


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _get_tolerance(
    reference: ReferenceWeights, result: ReferenceWeights, key: str, scale: float
) -> float:
    relative = count_roundings(reference, result, key)
    if relative == 0:
        return 0.0
    coarsest = [torch.finfo(part.dtype(key)) for part in (reference, result)]
    smallest = max(info.smallest_normal * info.eps for info in coarsest)
    return relative * scale + smallest


def compare_tensor(
    reference: ReferenceWeights, result: ReferenceWeights, key: str, num_tokens: int
) -> WeightDifference:
    """Compare one tensor.

    Args:
        reference: the source's weights.
        result: the result's.
        key: the tensor's name.
        num_tokens: rows of the vocabulary to compare.

    Returns:
        How far it is off; infinitely where it is missing or of another shape.
    """
    if key not in result:
        return WeightDifference(key, float("inf"), 0, 0.0)
    shape, other = reference.shape(key), result.shape(key)
    if key in (HEAD, EMBEDDING):
        shape, other = ((min(num_tokens, part[0]), *part[1:]) for part in (shape, other))
    if shape != other:
        return WeightDifference(key, float("inf"), 0, 0.0)
    largest, row, scale = 0.0, 0, 0.0
    is_exact = count_roundings(reference, result, key) == 0
    for start, stop in split_rows(shape, CHUNK_VALUES):
        expected, found = reference.rows(key, start, stop), result.rows(key, start, stop)
        if is_exact and expected.dtype == found.dtype and torch.equal(expected, found):
            continue
        distance, index, size = measure_difference(found.float(), expected.float())
        scale = max(scale, size)
        if distance > largest:
            largest, row = distance, start + index[0]
    return WeightDifference(key, largest, row, _get_tolerance(reference, result, key, scale))
