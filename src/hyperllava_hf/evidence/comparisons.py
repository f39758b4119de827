"""What is compared with what: fixed before any guided arm was trained.

The primary outcome is the overall accuracy on the test split: the mean over the five families of
the share of questions answered exactly. Arms are paired by seed. A family of comparisons, within
which Holm corrects, is one group.
"""

from __future__ import annotations

from typing import NamedTuple

PRIMARY_OUTCOME = "test_overall"
# Scope "prompt" would be the better default if it won by this much, significantly after Holm.
CLEAR_MARGIN = 0.02
SIGNIFICANCE = 0.05


class Pair(NamedTuple):
    """A comparison: `first` minus `second`."""

    group: str
    first: str
    second: str


def list_pairs() -> list[Pair]:
    """List all comparisons.

    Returns:
        The pairs, by group.
    """
    against: dict[str, dict[str, tuple[str, ...]]] = {
        "common_rate": {
            "common_rate_guided": ("llava", "common_rate_no_visual", "common_rate_no_language"),
        },
        "ablation": {"guided": ("llava", "no_visual", "no_language", "common_rate_guided")},
        "controls": {
            "guided": (
                "static_equal_parameters",
                "static_equal_parameters_slow",
                "static_equal_r",
                "static_equal_r_slow",
                "latent",
            )
        },
        "efficient": {
            "efficient_guided": (
                "efficient_projector",
                "efficient_static_equal_parameters",
                "efficient_static_equal_r",
                "efficient_lora_equal_parameters",
                "efficient_lora_equal_r",
                "efficient_latent",
                "efficient_guided_prompt",
            )
        },
    }
    pairs = [
        Pair(group, first, second)
        for group, comparisons in against.items()
        for first, seconds in comparisons.items()
        for second in seconds
    ]
    pairs += [Pair("scope", f"prompt_{pooling}", "guided") for pooling in ("mean", "text", "last")]
    pairs.append(Pair("scope", "dense_prompt", "dense_token"))
    variants = {
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
    pairs += [Pair(group, name, "guided") for group, names in variants.items() for name in names]
    pairs += [
        Pair("width", f"width_{width}_guided", f"width_{width}_static") for width in (64, 192)
    ]
    pairs.append(Pair("width", "guided", "static_equal_parameters"))
    return pairs
