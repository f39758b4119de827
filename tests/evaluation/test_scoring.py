"""Scoring: literal matches, the interval against a simulation, and the majority answer."""

import numpy as np
import pytest

from hyperllava_hf.evaluation.scoring import (
    bootstrap_interval,
    is_exact_match,
    normalize_answer,
    score_majority,
)


@pytest.mark.parametrize(
    ("predicted", "answer", "same"),
    [
        ("7", "7", True),
        (" Yes. ", "yes", True),
        ("Red", "red", True),
        ("A red 3 in the top left", "A red 3 in the top left.", True),
        ("7..", "7", False),
        ("17", "7", False),
        ("", "7", False),
        ("two", "2", False),
    ],
)
def test_exact_match(predicted: str, answer: str, same: bool) -> None:
    assert is_exact_match(predicted, answer) is same


def test_normalisation_removes_one_period_only() -> None:
    assert normalize_answer("  A B. ") == "a b"
    assert normalize_answer("...") == ".."


def test_interval_of_equal_answers_is_a_point() -> None:
    assert bootstrap_interval([True] * 9, [[i % 3] for i in range(9)]) == (1.0, 1.0)
    assert bootstrap_interval([False] * 4, [[0], [1], [1, 2], [3]]) == (0.0, 0.0)


def test_questions_about_one_glyph_count_as_one() -> None:
    # 40 glyphs, each right or wrong in all of its 25 questions: as many facts as glyphs.
    correct = [glyph % 4 != 0 for glyph in range(40) for _ in range(25)]
    low, high = bootstrap_interval(correct, [[glyph] for glyph in range(40) for _ in range(25)])
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 40)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.12)


def test_interval_of_scenes_covers_other_handwriting() -> None:
    """Every glyph is legible or not; a scene of two is right if both are."""
    num_glyphs, num_questions, legible = 100, 500, 0.9
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        good = rng.random(num_glyphs) < legible
        pairs = rng.integers(num_glyphs, size=(num_questions, 2))
        correct = good[pairs].all(axis=1).tolist()
        low, high = bootstrap_interval(correct, pairs.tolist(), num_resamples=300, seed=trial)
        covered += low <= legible**2 <= high
    assert covered >= 52


def test_missing_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="found 1 answers and glyphs of 2 questions"):
        bootstrap_interval([True], [[0], [1]])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], [])


def test_majority_is_taken_within_a_form() -> None:
    forms = ["a", "a", "a", "b", "b"]
    assert score_majority(forms, ["1", "1", "2", "2", "2"]) == [True, True, False, True, True]
