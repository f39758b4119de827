"""Statistics, against formulas worked out by other means."""

import itertools
import math

import numpy as np
import pytest

from hyperllava_hf.evidence.statistics import compare, correct_holm, estimate_mean, flip_signs


def test_the_interval_of_a_mean_uses_students_t() -> None:
    # 2.776 is the 97.5 % point of t with 4 degrees of freedom, from a printed table.
    mean, half_width = estimate_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)


def test_the_paired_test_finds_the_same_p_by_integration_of_the_t_density() -> None:
    first, second = [0.61, 0.64, 0.60, 0.66], [0.58, 0.63, 0.61, 0.60]
    differences = np.subtract(first, second)
    statistic = differences.mean() / (differences.std(ddof=1) / 2.0)
    degrees = 3
    points = np.linspace(-abs(statistic), abs(statistic), 200_001)
    constant = math.gamma((degrees + 1) / 2) / (
        math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    )
    density = constant * (1 + points**2 / degrees) ** (-(degrees + 1) / 2)
    inside = float(np.trapezoid(density, points))
    assert compare(first, second).t_test == pytest.approx(1.0 - inside, abs=1e-6)


def test_sign_flips_count_patterns_by_hand() -> None:
    differences = [3.0, 1.0, -0.5]
    sums = [abs(3 * a + b - 0.5 * c) for a, b, c in itertools.product((1, -1), repeat=3)]
    assert flip_signs(differences) == sum(total >= 3.5 for total in sums) / 8
    assert flip_signs([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32


def test_holm_steps_down_and_never_reorders() -> None:
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = correct_holm([0.5, float("nan"), 0.9])
    assert adjusted[0] == 1.0
    assert math.isnan(adjusted[1])
    assert adjusted[2] == 1.0


def test_equal_arms_differ_by_nothing_and_unpaired_arms_are_refused() -> None:
    same = compare([0.5, 0.6], [0.5, 0.6])
    assert (same.mean, same.t_test, same.sign_flip) == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="found 1 and 2 values"):
        compare([0.5], [0.5, 0.6])
