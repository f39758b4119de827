"""Statistics over seeds: t intervals, paired tests, and Holm's correction.

With three to five seeds the tests see large differences alone: five pairs reach no lower than
2 / 32 = 0.0625 in the sign-flip test, whatever the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

COVERAGE = 0.95


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two arms over the seeds that both have.

    Attributes:
        mean: Mean difference, first minus second.
        half_width: Half of the 95 % t interval of the mean difference.
        t_test: Two-sided p of the paired t test.
        sign_flip: Two-sided p of the exact sign-flip permutation test.
        num_seeds: Pairs.
    """

    mean: float
    half_width: float
    t_test: float
    sign_flip: float
    num_seeds: int


def estimate_mean(values: Sequence[float]) -> tuple[float, float]:
    """Estimate a mean over seeds.

    Args:
        values: One a seed.

    Returns:
        The mean, and half of its 95 % t interval; NaN for a single value.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(stats.t.ppf(0.5 + COVERAGE / 2, len(array) - 1) * error)


def flip_signs(differences: Sequence[float]) -> float:
    """Test whether paired differences are centred on zero, by all ways to flip their signs.

    Args:
        differences: One a pair.

    Returns:
        Two-sided p: the share of sign patterns whose sum is as far from zero.
    """
    array = np.asarray(differences, dtype=float)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(array))))
    sums = np.abs(signs @ array)
    return float(np.mean(sums >= abs(array.sum()) - 1e-12))


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two arms over the same seeds.

    Args:
        first: One value a seed.
        second: One value a seed, in the same order.

    Returns:
        The comparison; p is 1 where all differences are zero, NaN for a single pair.

    Raises:
        ValueError: If the arms differ in the number of seeds or have none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"found {len(first)} and {len(second)} values, expected as many of both and at least "
            "one: pass the seeds that both arms have"
        )
    differences = np.subtract(first, second).tolist()
    mean, half_width = estimate_mean(differences)
    if np.allclose(differences, 0.0):
        p_value = 1.0
    elif len(differences) < 2:
        p_value = float("nan")
    else:
        p_value = float(stats.ttest_rel(first, second).pvalue)
    return Comparison(mean, half_width, p_value, flip_signs(differences), len(differences))


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p values by Holm's step-down procedure.

    Args:
        p_values: The p values; NaN stays NaN and does not count.

    Returns:
        Adjusted p values, in the order given.
    """
    adjusted = [float("nan")] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not np.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted
