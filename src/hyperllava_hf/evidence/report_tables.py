"""The tables of the report, as Markdown, from the table of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..evaluation.digit_questions import FAMILIES
from .arms import Arm, list_arms
from .comparisons import PRIMARY_OUTCOME, SECONDARY_OUTCOME, Pair, list_pairs
from .result_table import collect_values
from .statistics import Comparison, compare, correct_holm, estimate_mean

Rows = Sequence[dict[str, str]]


def build_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Build a Markdown table.

    Args:
        header: Column names.
        rows: Cells.

    Returns:
        The table.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def format_points(mean: float, half_width: float, sign: bool = False) -> str:
    """Format a share in percentage points with its interval.

    Args:
        mean: The share.
        half_width: Half of its interval; NaN for none.
        sign: Whether a plus sign is written.

    Returns:
        Such as "61.2 +- 1.3".
    """
    text = f"{100 * mean:+.1f}" if sign else f"{100 * mean:.1f}"
    return text if math.isnan(half_width) else f"{text} +- {100 * half_width:.1f}"


def format_loss(mean: float, half_width: float, sign: bool = False) -> str:
    """Format a loss with its interval.

    Args:
        mean: The loss in nats.
        half_width: Half of its interval; NaN for none.
        sign: Whether a plus sign is written.

    Returns:
        Such as "0.512 +- 0.013".
    """
    text = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    return text if math.isnan(half_width) else f"{text} +- {half_width:.3f}"


def format_p(p: float) -> str:
    """Format a p value.

    Args:
        p: The p value, NaN for none.

    Returns:
        Three decimals.
    """
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_thousands(number: float) -> str:
    """Format a count in thousands.

    Args:
        number: The count.

    Returns:
        Such as "263.3 k".
    """
    return f"{number / 1000:.1f} k"


def find_rows(rows: Rows, arm: str) -> list[dict[str, str]]:
    """Find the rows of an arm that were measured on the test split.

    Args:
        rows: Rows of the table of results.
        arm: The arm's name.

    Returns:
        Its rows.
    """
    return [row for row in rows if row["arm"] == arm and row[PRIMARY_OUTCOME]]


def list_shown_arms(group: str) -> list[Arm]:
    """List the arms of a group's table: those that its comparisons name.

    Args:
        group: The group.

    Returns:
        The arms, in the order in which they ran.
    """
    names = {name for pair in list_pairs() if pair.group == group for name in pair[1:]}
    return [arm for arm in list_arms() if arm.name in names or arm.group == group]


def build_accuracy_table(rows: Rows, group: str) -> str:
    """Build the table of a group's arms.

    Args:
        rows: Rows of the table of results.
        group: The group.

    Returns:
        The table: accuracy on test with intervals over seeds, and what each arm costs.
    """
    header = ["arm", "seeds", "overall", *FAMILIES, "loss", "validation"]
    header += ["added parameters", "added FLOPs"]
    lines = []
    for arm in list_shown_arms(group):
        own = find_rows(rows, arm.name)
        if not own:
            lines.append([arm.name, "not run", *["-"] * (len(header) - 2)])
            continue
        overall = estimate_mean([float(row[PRIMARY_OUTCOME]) for row in own])
        families = [
            f"{100 * estimate_mean([float(row[f'test_{family}']) for row in own])[0]:.1f}"
            for family in FAMILIES
        ]
        loss = estimate_mean([float(row[SECONDARY_OUTCOME]) for row in own])
        validation = estimate_mean([float(row["validation_overall"]) for row in own])
        share = float(own[0]["added_operations"]) / float(own[0]["base_operations"])
        lines.append(
            [
                arm.name,
                str(len(own)),
                format_points(*overall),
                *families,
                format_loss(*loss),
                format_points(*validation),
                format_thousands(float(own[0]["added_parameters"])),
                f"{100 * share:.1f} %",
            ]
        )
    return build_table(header, lines)


def compare_pair(rows: Rows, pair: Pair, column: str = PRIMARY_OUTCOME) -> Comparison | None:
    """Compare two arms over the seeds that both have.

    Args:
        rows: Rows of the table of results.
        pair: The pair.
        column: What is compared.

    Returns:
        The comparison; None where no seed has both.
    """
    first, second = (collect_values(rows, name, column) for name in (pair.first, pair.second))
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    return compare([first[seed] for seed in seeds], [second[seed] for seed in seeds])


def compare_group(
    rows: Rows, group: str, column: str = PRIMARY_OUTCOME
) -> list[tuple[Pair, Comparison, float]]:
    """Compare all pairs of a group that were run.

    Args:
        rows: Rows of the table of results.
        group: The group.
        column: What is compared.

    Returns:
        Each pair with its comparison and its p after Holm.
    """
    done = [
        (pair, compare_pair(rows, pair, column)) for pair in list_pairs() if pair.group == group
    ]
    known = [(pair, comparison) for pair, comparison in done if comparison is not None]
    adjusted = correct_holm([comparison.t_test for _, comparison in known])
    return [(pair, found, p) for (pair, found), p in zip(known, adjusted, strict=True)]


def build_comparison_table(rows: Rows, group: str) -> str:
    """Build the table of a group's comparisons.

    Args:
        rows: Rows of the table of results.
        group: The group.

    Returns:
        The table: differences in test accuracy and in the test answers' loss, with intervals and
        tests.
    """
    header = ["comparison", "pairs", "difference", "paired t", "after Holm", "sign flips"]
    header += ["loss difference", "loss, after Holm"]
    accuracies = compare_group(rows, group)
    losses = compare_group(rows, group, SECONDARY_OUTCOME)
    lines = [
        [
            f"{pair.first} - {pair.second}",
            str(comparison.num_seeds),
            format_points(comparison.mean, comparison.half_width, sign=True),
            format_p(comparison.t_test),
            format_p(adjusted),
            format_p(comparison.sign_flip),
            format_loss(loss.mean, loss.half_width, sign=True),
            format_p(loss_adjusted),
        ]
        for (pair, comparison, adjusted), (_, loss, loss_adjusted) in zip(
            accuracies, losses, strict=True
        )
    ]
    return build_table(header, lines)


def average_effects(effects: dict[str, Any], arm: str) -> dict[str, list[dict[str, float]]]:
    """Collect what tampering did to an arm, over its seeds.

    Args:
        effects: What `measure_effects` returned, by run.
        arm: The arm's name.

    Returns:
        For each change the accuracies, one a seed.
    """
    collected: dict[str, list[dict[str, float]]] = {}
    for run, result in effects.items():
        if run.rsplit("-", 1)[0] == arm:
            for change, accuracy in result["accuracy"].items():
                collected.setdefault(change, []).append(accuracy)
    return collected


def build_effects_table(effects: dict[str, Any], arm: str) -> str:
    """Build the table of what tampering with experts does.

    Args:
        effects: What `measure_effects` returned, by run.
        arm: The arm's name.

    Returns:
        The table: accuracy on validation, and the paired difference from the trained experts.
    """
    collected = average_effects(effects, arm)
    header = ["experts", "seeds", "overall", "difference", *FAMILIES]
    lines = []
    trained = [accuracy["overall"] for accuracy in collected.get("as trained", [])]
    for change, accuracies in collected.items():
        overall = [accuracy["overall"] for accuracy in accuracies]
        difference = compare(overall, trained)
        shown = format_points(difference.mean, difference.half_width, sign=True)
        families = [
            f"{100 * estimate_mean([accuracy[family] for accuracy in accuracies])[0]:.1f}"
            for family in FAMILIES
        ]
        mean = format_points(*estimate_mean(overall))
        is_base = change == "as trained"
        lines.append([change, str(len(overall)), mean, "" if is_base else shown, *families])
    return build_table(header, lines)
