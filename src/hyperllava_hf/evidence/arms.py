"""The arms: what is compared with what, group by group in the order in which they run.

Every arm is the bundled checkpoint's architecture with other experts. Regime "full" trains the LLM
in stage 2, as the paper's Table 1; regime "efficient" freezes it and trains projector and experts
alone, as its Table 6. Variants of place and size run in the second: there the answers have to come
from the experts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .costs import count_expert_parameters, count_lora_parameters
from .rates import COMMON_RATES, Rates, get_rates

WIDTH = 128
WIDTHS = (64, 128, 192)
SEEDS = (1, 2, 3, 4, 5)
FEW_SEEDS = SEEDS[:3]
# Stage 2 of the arms that train for longer, in multiples of the others'.
LONG = 4
NO_EXPERTS = {"visual_expert": "none", "language_expert_layers": "none"}
# The bundled checkpoint's sizes.
SIZES = {"expert_input_dim": 32, "expert_hidden_dim": 8}
DEFAULT_EXPERTS = {**SIZES, "expert_source": "guided"}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: Its name, unique.
        group: A key of `GROUPS`: when it runs.
        kind: What is added to LLaVA: one of `KINDS` and `LORA_KINDS`, or "none".
        experts: Expert fields of `HyperLlavaConfig` that differ from `DEFAULT_EXPERTS`.
        regime: "full" or "efficient".
        lora_rank: Rank of LoRA on the LLM's linear layers; 0 for none.
        rates: Learning rates of what is added to LLaVA.
        width: Width of the decoder.
        dense_images: Whether rows have 7B's ratio of image to text positions.
        instruct_factor: Steps of stage 2, as a multiple of the others'.
        seeds: Its seeds.
    """

    name: str
    group: str
    kind: str = "none"
    experts: Mapping[str, Any] = field(default_factory=dict)
    regime: str = "full"
    lora_rank: int = 0
    rates: Rates = COMMON_RATES
    width: int = WIDTH
    dense_images: bool = False
    instruct_factor: int = 1
    seeds: tuple[int, ...] = SEEDS

    @property
    def expert_fields(self) -> dict[str, Any]:
        """Expert fields of the configuration."""
        return {**DEFAULT_EXPERTS, **self.experts}


GROUPS = {
    "ablation": "Which experts (Table 1)",
    "efficient": "Controls with a frozen LLM (Table 6)",
    "controls": "Static and latent controls, whole model trained (Table 5)",
    "scope": "Scope and pooling of the language guidance",
    "rate": "HyperNetworks at the common learning rate",
    "long": "Four times as many steps of stage 2",
    "placement": "Place of the visual expert, blocks, guidance block (Tables 2, 3, Fig. 3)",
    "sizes": "m and r (Fig. 4)",
    "width": "Width of the decoder",
}


@functools.cache
def find_static_rank(width: int) -> int:
    """Find the bottleneck at which static adapters have as many parameters as guided experts.

    Args:
        width: Width of the decoder.

    Returns:
        r of the static adapters; they are then within 2 % of the guided experts.
    """
    guided = count_expert_parameters(width, DEFAULT_EXPERTS)
    unit = {**DEFAULT_EXPERTS, "expert_source": "static", "expert_hidden_dim": 1}
    return round(guided / count_expert_parameters(width, unit))


@functools.cache
def find_lora_rank(width: int) -> int:
    """Find the rank at which LoRA has as many parameters as guided experts.

    Args:
        width: Width of the decoder.

    Returns:
        The rank.
    """
    guided = count_expert_parameters(width, DEFAULT_EXPERTS)
    return round(guided / count_lora_parameters(width, 1))


# What stands in the guided experts' place: fields of the experts, and whether it is LoRA.
KINDS = ("guided", "prompt", "latent", "static_equal_parameters", "static_equal_r")
LORA_KINDS = ("lora_equal_parameters", "lora_equal_r")


def build_arm(
    name: str,
    group: str,
    kind: str,
    regime: str,
    experts: Mapping[str, Any] | None = None,
    rates: Rates | None = None,
    **fields: Any,
) -> Arm:
    """Build an arm of a kind, at the rates that were tuned for it.

    Args:
        name: Its name.
        group: Its group.
        kind: One of `KINDS` and `LORA_KINDS`, or "none" for plain LLaVA.
        regime: "full" or "efficient".
        experts: Expert fields beside those of the kind.
        rates: Learning rates in place of the tuned ones.
        **fields: Further fields of `Arm`.

    Returns:
        The arm.
    """
    width = fields.get("width", WIDTH)
    rank = 0
    own: dict[str, Any] = {}
    if kind in ("none", *LORA_KINDS):
        own = dict(NO_EXPERTS)
    if kind in LORA_KINDS:
        rank = find_lora_rank(width) if kind == LORA_KINDS[0] else SIZES["expert_hidden_dim"]
    elif kind == "prompt":
        own = {"language_guidance_scope": "prompt"}
    elif kind == "latent":
        own = {"expert_source": "latent"}
    elif kind == "static_equal_parameters":
        own = {"expert_source": "static", "expert_hidden_dim": find_static_rank(width)}
    elif kind == "static_equal_r":
        own = {"expert_source": "static"}
    rates = rates or get_rates(kind, regime)
    return Arm(name, group, kind, {**own, **(experts or {})}, regime, rank, rates, **fields)


def list_arms() -> list[Arm]:
    """List all arms, in the order in which they run.

    Returns:
        The arms.
    """
    no_visual, no_language = {"visual_expert": "none"}, {"language_expert_layers": "none"}
    few: dict[str, Any] = {"seeds": FEW_SEEDS}
    controls = ("static_equal_parameters", "static_equal_r", "latent")
    return [
        build_arm("llava", "ablation", "none", "full"),
        build_arm("guided", "ablation", "guided", "full"),
        build_arm("no_visual", "ablation", "guided", "full", no_visual),
        build_arm("no_language", "ablation", "guided", "full", no_language),
        build_arm("efficient_projector", "efficient", "none", "efficient"),
        *(
            build_arm(f"efficient_{kind}", "efficient", kind, "efficient")
            for kind in ("guided", *controls, *LORA_KINDS)
        ),
        build_arm("efficient_no_visual", "efficient", "guided", "efficient", no_visual),
        build_arm("efficient_no_language", "efficient", "guided", "efficient", no_language),
        *(build_arm(kind, "controls", kind, "full") for kind in controls),
        *_list_scope_arms(),
        build_arm("common_rate_guided", "rate", "guided", "full", rates=COMMON_RATES, **few),
        build_arm(
            "efficient_common_rate_guided",
            "rate",
            "guided",
            "efficient",
            rates=COMMON_RATES,
            **few,
        ),
        *_list_long_arms(),
        *_list_variant_arms(),
        *_list_width_arms(),
    ]


def _list_scope_arms() -> list[Arm]:
    few: dict[str, Any] = {"seeds": FEW_SEEDS}
    dense: dict[str, Any] = {"dense_images": True, **few}
    poolings = {name: {"language_guidance_pooling": name} for name in ("text", "last")}
    return [
        build_arm("prompt_mean", "scope", "prompt", "full"),
        build_arm("efficient_prompt_mean", "scope", "prompt", "efficient"),
        *(
            build_arm(f"efficient_prompt_{name}", "scope", "prompt", "efficient", fields, **few)
            for name, fields in poolings.items()
        ),
        build_arm("dense_token", "scope", "guided", "efficient", **dense),
        build_arm("dense_prompt", "scope", "prompt", "efficient", **dense),
    ]


def _list_long_arms() -> list[Arm]:
    long: dict[str, Any] = {"instruct_factor": LONG, "seeds": FEW_SEEDS}
    efficient = ("guided", "prompt", "static_equal_parameters", "lora_equal_parameters")
    full = {"llava": "none", "guided": "guided", "static_equal_parameters": efficient[2]}
    return [
        *(
            build_arm(f"long_efficient_{kind}", "long", kind, "efficient", **long)
            for kind in efficient
        ),
        *(build_arm(f"long_{name}", "long", kind, "full", **long) for name, kind in full.items()),
    ]


def _list_variant_arms() -> list[Arm]:
    placements: dict[str, dict[str, Any]] = {
        "visual_second": {"visual_expert": "second"},
        "visual_both": {"visual_expert": "both"},
        "blocks_anterior": {"language_expert_layers": "anterior"},
        "blocks_all": {"language_expert_layers": "all"},
        "guidance_block_1": {"language_guidance_layer": 1},
        "guidance_block_3": {"language_guidance_layer": 3},
    }
    sizes = {
        "m_8": {"expert_input_dim": 8},
        "m_64": {"expert_input_dim": 64},
        "r_2": {"expert_hidden_dim": 2},
        "r_16": {"expert_hidden_dim": 16},
    }
    return [
        build_arm(name, group, "guided", "efficient", fields, seeds=FEW_SEEDS)
        for group, variants in (("placement", placements), ("sizes", sizes))
        for name, fields in variants.items()
    ]


def _list_width_arms() -> list[Arm]:
    kinds = {"projector": "none", "guided": "guided", "static": "static_equal_parameters"}
    return [
        build_arm(f"width_{width}_{name}", "width", kind, "efficient", width=width, seeds=FEW_SEEDS)
        for width in WIDTHS
        if width != WIDTH
        for name, kind in kinds.items()
    ]
