"""Scores of answers: exact match, intervals over handwriting, and the majority baseline.

An interval must say what other handwriting would have given. A thousand questions share a few
hundred glyphs, so questions are not independent and a binomial interval is two to three times too
narrow. The bootstrap here draws glyphs with replacement, w_g times each. Scenes that were composed
from the drawn glyphs would hold a question's glyphs prod_g w_g times; its first order,
1 + sum_g (w_g - 1), is the question's weight, which has the same variance in the mean without
losing most questions to a zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2000
COVERAGE = 0.95


def normalize_answer(text: str) -> str:
    """Bring an answer into the form in which answers are compared.

    Args:
        text: An answer.

    Returns:
        The text stripped, in lower case, without one final period.
    """
    return text.strip().lower().removesuffix(".")


def is_exact_match(predicted: str, answer: str) -> bool:
    """Tell whether a predicted answer is the right one.

    Args:
        predicted: What the model said.
        answer: The right answer.

    Returns:
        Whether both normalise to the same text.
    """
    return normalize_answer(predicted) == normalize_answer(answer)


def bootstrap_interval(
    correct: Sequence[bool],
    samples: Sequence[Sequence[int]],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Estimate the interval of an accuracy over other handwriting.

    Args:
        correct: Whether each question was answered rightly.
        samples: Sample numbers of the glyphs that each question hangs on.
        num_resamples: How many times glyphs are drawn.
        seed: Of the draws.

    Returns:
        The 2.5 % and 97.5 % quantiles, within 0 to 1.

    Raises:
        ValueError: If there is no question, or the two arguments differ in length.
    """
    if not correct or len(correct) != len(samples):
        raise ValueError(
            f"found {len(correct)} answers and glyphs of {len(samples)} questions, expected as "
            "many of both and at least one"
        )
    glyphs = sorted({sample for group in samples for sample in group})
    column = {sample: i for i, sample in enumerate(glyphs)}
    occurrences = np.zeros((len(samples), len(glyphs)))
    for row, group in enumerate(samples):
        for sample in group:
            occurrences[row, column[sample]] += 1.0
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(glyphs), np.full(len(glyphs), 1 / len(glyphs)), num_resamples)
    weights = 1.0 + (drawn - 1.0) @ occurrences.T  # (resamples, questions)
    means = weights @ np.asarray(correct, dtype=float) / weights.sum(axis=1)
    tail = (1.0 - COVERAGE) / 2
    low, high = np.clip(np.quantile(means, [tail, 1.0 - tail]), 0.0, 1.0)
    return float(low), float(high)


def score_majority(forms: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Answer every question of a form with the form's most frequent answer.

    Args:
        forms: The form of each question.
        answers: The right answer of each question.

    Returns:
        Whether each question would be answered rightly.
    """
    counts: dict[str, Counter[str]] = {}
    for form, answer in zip(forms, answers, strict=True):
        counts.setdefault(form, Counter())[answer] += 1
    best = {form: counter.most_common(1)[0][0] for form, counter in counts.items()}
    return [answer == best[form] for form, answer in zip(forms, answers, strict=True)]
