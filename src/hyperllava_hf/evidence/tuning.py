"""Tuning of the arms' learning rates: every kind gets as many tries, on seeds of their own.

First the visual experts' rates, by the loss at the end of stage 1, where rows never repeat; then,
with these, the language experts' and LoRA's, by the loss of the validation answers after stage 2.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .arms import KINDS, LORA_KINDS, Arm, build_arm
from .rates import LANGUAGE, VISUAL, VISUAL_KINDS, Rates, get_grid, get_visual_kind
from .settings import REGIMES

TUNED_STAGES = ("align", "instruct")
# No seeds of the evidence.
TUNING_SEEDS = {"align": (98, 99), "instruct": (99,)}
Row = Mapping[str, Any]


class Candidate(NamedTuple):
    """A rate that is tried.

    Attributes:
        kind: What is tuned.
        regime: The regime; "both" for stage 1, which they share.
        rate: The rate that is tried.
        arm: The arm that is trained for it.
    """

    kind: str
    regime: str
    rate: float
    arm: Arm

    def build_row(self, stage: str, seed: int, result: dict[str, Any]) -> dict[str, Any]:
        """Build a row of the table of tuning.

        Args:
            stage: The stage that was trained.
            seed: The run's seed.
            result: What the run returned.

        Returns:
            Values by column.
        """
        validation = result.get("validation", {})
        accuracy = validation.get("overall")
        return {
            "stage": stage,
            "kind": self.kind,
            "regime": self.regime,
            "rate": f"{self.rate:g}",
            "visual_rate": f"{self.arm.rates.visual:g}",
            "seed": seed,
            "loss": f"{validation.get('loss', result.get('loss')):.4f}",
            "validation_overall": "" if accuracy is None else f"{accuracy:.4f}",
        }


def list_candidates(
    stage: str, visual: Mapping[str, float], arms: Sequence[Arm]
) -> list[Candidate]:
    """List what is tried for a stage.

    Args:
        stage: "align" or "instruct".
        visual: The visual experts' rates, by kind; read for "instruct".
        arms: What will be trained: kinds and regimes that are not among these are left out.

    Returns:
        The candidates.
    """
    needed = {(arm.kind, arm.regime) for arm in arms}
    if stage == "align":
        visual_kinds = {get_visual_kind(kind) for kind, _ in needed}
        tried = [
            (kind, "both", Rates(rate, 1.0))
            for kind in VISUAL_KINDS
            if kind in visual_kinds
            for rate in get_grid(kind)
        ]
    else:
        tried = [
            (kind, regime, Rates(visual.get(get_visual_kind(kind), 1.0), rate))
            for regime in REGIMES
            for kind in (*KINDS, *LORA_KINDS)
            if (kind, regime) in needed
            for rate in get_grid(kind)
        ]
    candidates = []
    for kind, regime, rates in tried:
        rate = rates.visual if stage == "align" else rates.language
        trained = "full" if regime == "both" else regime
        name = f"{kind}-{regime}-{rate:g}"
        arm = build_arm(name, "tuning", kind, trained, rates=rates)
        candidates.append(Candidate(kind, regime, rate, arm))
    return candidates


def average_losses(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[float, float]]:
    """Average the losses of each rate over its seeds.

    Args:
        rows: Rows of the table of tuning.

    Returns:
        For each stage, kind and regime the mean loss by rate, in the order in which they ran.
    """
    losses: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for row in rows:
        own = losses.setdefault((row["stage"], row["kind"], row["regime"]), {})
        own.setdefault(float(row["rate"]), []).append(float(row["loss"]))
    return {
        key: {rate: statistics.mean(values) for rate, values in tried.items()}
        for key, tried in losses.items()
    }


def choose_rate(losses: Mapping[float, float]) -> float:
    """Choose the rate of the lowest loss.

    Args:
        losses: Mean losses by rate.

    Returns:
        The rate.
    """
    return min(losses, key=losses.__getitem__)


def _choose(rows: Sequence[Row], stage: str) -> dict[tuple[str, str], float]:
    found = average_losses(rows)
    return {key[1:]: choose_rate(losses) for key, losses in found.items() if key[0] == stage}


def choose_visual_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Choose the visual experts' rates: those of the lowest mean loss in stage 1.

    Args:
        rows: Rows of the table of tuning.

    Returns:
        Rates by kind.
    """
    return {kind: rate for (kind, _), rate in _choose(rows, "align").items()}


def choose_language_rates(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Choose the language experts' and LoRA's rates: those of the lowest validation loss.

    Args:
        rows: Rows of the table of tuning.

    Returns:
        Rates by kind and regime.
    """
    return _choose(rows, "instruct")


def describe_differences(rows: Sequence[Row]) -> list[str]:
    """Describe where the tuning chose other rates than `rates.py` holds.

    Args:
        rows: Rows of the table of tuning.

    Returns:
        One line a difference.
    """
    found: tuple[tuple[str, Mapping[Any, float], Mapping[Any, float]], ...] = (
        ("VISUAL", choose_visual_rates(rows), VISUAL),
        ("LANGUAGE", choose_language_rates(rows), LANGUAGE),
    )
    return [
        f"rates.{name}: {key!r} is {held.get(key)}, the tuning chose {rate:g}"
        for name, chosen, held in found
        for key, rate in chosen.items()
        if held.get(key) != rate
    ]
