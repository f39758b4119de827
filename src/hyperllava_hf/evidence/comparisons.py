"""What is compared with what: fixed before any run of the arms.

The primary outcome is the overall accuracy on the test split: the mean over the five families of
the share of questions answered exactly. Arms are paired by seed. A family of comparisons, within
which Holm corrects, is one group. The loss of the test answers is compared in the same pairs.
"""

from __future__ import annotations

from typing import NamedTuple

PRIMARY_OUTCOME = "test_overall"
SECONDARY_OUTCOME = "test_loss"
# Scope "prompt" would be the better default if it won by this much, significantly after Holm.
CLEAR_MARGIN = 0.02
SIGNIFICANCE = 0.05


class Pair(NamedTuple):
    """A comparison: `first` minus `second`."""

    group: str
    first: str
    second: str


# Group, first arm, second arms.
AGAINST: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ablation", "guided", ("llava", "no_visual", "no_language")),
    ("ablation", "no_visual", ("llava",)),
    ("ablation", "no_language", ("llava",)),
    (
        "efficient",
        "efficient_guided",
        (
            "efficient_projector",
            "efficient_no_visual",
            "efficient_no_language",
            "efficient_static_equal_parameters",
            "efficient_static_equal_r",
            "efficient_lora_equal_parameters",
            "efficient_lora_equal_r",
            "efficient_latent",
        ),
    ),
    ("controls", "guided", ("static_equal_parameters", "static_equal_r", "latent")),
    ("scope", "prompt_mean", ("guided",)),
    ("scope", "efficient_prompt_mean", ("efficient_guided",)),
    ("scope", "efficient_prompt_text", ("efficient_prompt_mean",)),
    ("scope", "efficient_prompt_last", ("efficient_prompt_mean",)),
    ("scope", "dense_prompt", ("dense_token",)),
    ("rate", "guided", ("common_rate_guided",)),
    ("rate", "efficient_guided", ("efficient_common_rate_guided",)),
    (
        "long",
        "long_efficient_guided",
        (
            "long_efficient_prompt",
            "long_efficient_static_equal_parameters",
            "long_efficient_lora_equal_parameters",
        ),
    ),
    ("long", "long_guided", ("long_llava", "long_static_equal_parameters")),
    ("width", "width_64_guided", ("width_64_static", "width_64_projector")),
    ("width", "efficient_guided", ("efficient_static_equal_parameters", "efficient_projector")),
    ("width", "width_192_guided", ("width_192_static", "width_192_projector")),
)
VARIANTS = {
    "placement": (
        "visual_second",
        "visual_both",
        "blocks_anterior",
        "blocks_all",
        "guidance_block_1",
        "guidance_block_3",
    ),
    "sizes": ("m_8", "m_64", "r_2", "r_16"),
}


# What the report opens with.
SCOPE_PAIRS = (
    Pair("scope", "prompt_mean", "guided"),
    Pair("scope", "efficient_prompt_mean", "efficient_guided"),
)
MAIN_PAIRS = (
    Pair("ablation", "guided", "llava"),
    Pair("controls", "guided", "static_equal_parameters"),
    Pair("efficient", "efficient_guided", "efficient_projector"),
    Pair("efficient", "efficient_guided", "efficient_static_equal_parameters"),
    Pair("efficient", "efficient_guided", "efficient_lora_equal_parameters"),
    Pair("efficient", "efficient_guided", "efficient_latent"),
    *SCOPE_PAIRS,
)


def list_pairs() -> list[Pair]:
    """List all comparisons.

    Returns:
        The pairs, by group.
    """
    pairs = [Pair(group, first, second) for group, first, seconds in AGAINST for second in seconds]
    pairs += [
        Pair(group, name, "efficient_guided") for group, names in VARIANTS.items() for name in names
    ]
    return pairs
