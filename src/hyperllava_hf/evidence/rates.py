"""Learning rates of what an arm adds to LLaVA, each tuned in the same way on validation.

No arm is to win or lose by its rate, so every kind of expert, and LoRA, gets the best of as many
rates. `GRIDS` holds the multiples of the common rate that are tried: those of HyperNetworks lie
lower, because a step on every entry of W2 moves an entry of a generated weight by up to m times as
much. `VISUAL` and `LANGUAGE` hold what `--steps tune` chose
(`docs/results/evidence_tuning.csv`; a test compares them).
"""

from __future__ import annotations

from typing import NamedTuple

GRIDS = {"generated": (1.0, 0.3, 0.1, 0.03), "direct": (3.0, 1.0, 0.3, 0.1)}
GENERATED_KINDS = ("guided", "prompt", "latent")


class Rates(NamedTuple):
    """Learning rates as multiples of the common one.

    Of generated experts they are those of the HyperNetwork (W1, B1, W2, B2), as
    `hypernetwork_learning_rate` in a recipe; encoders and biases b(n) keep the common rate. Of
    static adapters and LoRA they are those of all their parameters.

    Attributes:
        visual: Of the visual expert, in both stages.
        language: Of the language experts, or of LoRA.
    """

    visual: float = 1.0
    language: float = 1.0


COMMON_RATES = Rates()
VISUAL_KINDS = ("guided", "latent", "static_equal_parameters", "static_equal_r")
VISUAL: dict[str, float] = {
    "guided": 0.1,
    "latent": 0.03,
    "static_equal_parameters": 0.3,
    "static_equal_r": 0.1,
}
LANGUAGE: dict[tuple[str, str], float] = {
    ("guided", "full"): 1.0,
    ("prompt", "full"): 0.03,
    ("latent", "full"): 0.03,
    ("static_equal_parameters", "full"): 1.0,
    ("static_equal_r", "full"): 3.0,
    ("guided", "efficient"): 1.0,
    ("prompt", "efficient"): 1.0,
    ("latent", "efficient"): 1.0,
    ("static_equal_parameters", "efficient"): 3.0,
    ("static_equal_r", "efficient"): 3.0,
    ("lora_equal_parameters", "efficient"): 3.0,
    ("lora_equal_r", "efficient"): 3.0,
}


def get_visual_kind(kind: str) -> str:
    """Get the kind whose visual expert an arm has: both scopes have the same.

    Args:
        kind: The arm's kind.

    Returns:
        The visual expert's.
    """
    return "guided" if kind == "prompt" else kind


def get_grid(kind: str) -> tuple[float, ...]:
    """Get the rates that are tried for a kind.

    Args:
        kind: Of `arms.KINDS` or `arms.LORA_KINDS`.

    Returns:
        Multiples of the common rate.
    """
    return GRIDS["generated" if kind in GENERATED_KINDS else "direct"]


def get_rates(kind: str, regime: str) -> Rates:
    """Get the rates that were tuned for a kind of arm.

    Args:
        kind: Of `arms.KINDS` or `arms.LORA_KINDS`, or "none".
        regime: "full" or "efficient".

    Returns:
        Its rates; the common one where nothing was tuned.
    """
    visual = VISUAL.get(get_visual_kind(kind), 1.0)
    return Rates(visual, LANGUAGE.get((kind, regime), 1.0))
