"""The plots of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arms import GROUPS
from .comparisons import PRIMARY_OUTCOME
from .report_tables import Rows, average_effects, compare_group, find_rows, list_shown_arms
from .statistics import estimate_mean

DPI = 90


def _open_pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No version or date in the file: the same figures give the same bytes.
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    _open_pyplot().close(figure)


def plot_accuracies(rows: Rows, path: Path) -> None:
    """Plot every arm's test accuracy, group by group.

    Args:
        rows: Rows of the table of results.
        path: The PNG file.
    """
    shown = {
        group: [arm.name for arm in list_shown_arms(group) if find_rows(rows, arm.name)]
        for group in GROUPS
    }
    shown = {group: names for group, names in shown.items() if names}
    pyplot = _open_pyplot()
    figure, axes = pyplot.subplots(
        len(shown),
        1,
        figsize=(7, sum(0.27 * len(names) + 0.5 for names in shown.values())),
        height_ratios=[len(names) + 1 for names in shown.values()],
        sharex=True,
        squeeze=False,
    )
    for axis, (group, names) in zip(axes[:, 0], shown.items(), strict=True):
        for y, name in enumerate(reversed(names)):
            values = [100 * float(row[PRIMARY_OUTCOME]) for row in find_rows(rows, name)]
            mean, half_width = estimate_mean(values)
            error = 0.0 if math.isnan(half_width) else half_width
            axis.errorbar(mean, y, xerr=error, fmt="o", color="C0", capsize=3)
            axis.plot(values, [y] * len(values), "|", color="C1", markersize=9)
        axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.set_title(GROUPS[group], fontsize=9, loc="left")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel("test accuracy, % (dot and bar: mean, 95 % interval; ticks: seeds)")
    figure.tight_layout(h_pad=0.3)
    _save(figure, path)


def plot_differences(rows: Rows, path: Path) -> None:
    """Plot every comparison's difference with its interval.

    Args:
        rows: Rows of the table of results.
        path: The PNG file.
    """
    found = [item for group in GROUPS for item in compare_group(rows, group)]
    pyplot = _open_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 0.24 * len(found) + 0.8))
    for y, (_, comparison, adjusted) in enumerate(reversed(found)):
        half_width = 0.0 if math.isnan(comparison.half_width) else comparison.half_width
        colour = "C3" if adjusted < 0.05 else "C7"
        axis.errorbar(
            100 * comparison.mean, y, xerr=100 * half_width, fmt="o", color=colour, capsize=3
        )
    names = [f"{pair.first} - {pair.second}" for pair, _, _ in reversed(found)]
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("difference in test accuracy, points (red: significant after Holm)")
    _save(figure, path)


def plot_effects(effects: dict[str, Any], arms: Sequence[str], path: Path) -> None:
    """Plot what tampering with the experts does.

    Args:
        effects: What `measure_effects` returned, by run.
        arms: Names of arms.
        path: The PNG file.
    """
    pyplot = _open_pyplot()
    figure, axes = pyplot.subplots(
        1, len(arms), figsize=(2 + 2 * len(arms), 2.8), sharey=True, squeeze=False
    )
    for axis, arm in zip(axes[0], arms, strict=True):
        collected = average_effects(effects, arm)
        for y, (_, accuracies) in enumerate(reversed(collected.items())):
            values = [100 * accuracy["overall"] for accuracy in accuracies]
            axis.barh(y, estimate_mean(values)[0], color="C0", alpha=0.6)
            axis.plot(values, [y] * len(values), "|", color="black")
        axis.set_yticks(range(len(collected)), list(reversed(collected)), fontsize=8)
        axis.set_title(arm, fontsize=9)
        axis.set_xlabel("validation accuracy, %", fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def plot_weights(weights: dict[str, Any], path: Path) -> None:
    """Plot the projection of generated weights, coloured by question family and by content.

    Args:
        weights: What `project_weights` returned.
        path: The PNG file.
    """
    modalities = [name for name in ("visual", "language") if name in weights]
    labels = weights["labels"]
    pyplot = _open_pyplot()
    figure, axes = pyplot.subplots(
        len(modalities), len(labels), figsize=(9, 2.9 * len(modalities)), squeeze=False
    )
    for row, modality in zip(axes, modalities, strict=True):
        projection = weights[modality]
        points = projection["points"]
        for axis, (name, values) in zip(row, labels.items(), strict=True):
            for value in dict.fromkeys(sorted(values)):
                own = [point for point, label in zip(points, values, strict=True) if label == value]
                axis.scatter(*zip(*own, strict=True), s=8, label=value)
            share = 100 * projection["between_groups"][name]
            axis.set_title(f"{modality} by {name} ({share:.0f} % between groups)", fontsize=7)
            axis.tick_params(labelsize=6)
            axis.legend(fontsize=5, ncols=2)
    figure.tight_layout()
    _save(figure, path)
