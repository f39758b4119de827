"""The arms: what is compared with what, group by group in the order in which they run.

Every arm is the bundled checkpoint's architecture with other experts. Regime "full" trains the LLM
in stage 2, as the paper's Table 1; regime "efficient" freezes it and trains projector and experts
alone, as its Table 6.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .costs import count_expert_parameters, count_lora_parameters

WIDTH = 128
WIDTHS = (64, 128, 192)
SEEDS = (1, 2, 3, 4, 5)
FEW_SEEDS = SEEDS[:3]
NO_EXPERTS = {"visual_expert": "none", "language_expert_layers": "none"}
# The bundled checkpoint's sizes.
SIZES = {"expert_input_dim": 32, "expert_hidden_dim": 8}
DEFAULT_EXPERTS = {**SIZES, "expert_source": "guided"}
# Learning rate of generated experts beside that of everything else: chosen on the latent arm.
EXPERT_RATE = 0.1


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: Its name, unique.
        group: A key of `GROUPS`: when it runs.
        experts: Expert fields of `HyperLlavaConfig` that differ from `DEFAULT_EXPERTS`.
        regime: "full" or "efficient".
        lora_rank: Rank of LoRA on the LLM's linear layers; 0 for none.
        expert_rate: The experts' learning rate, as a multiple of all others'.
        width: Width of the decoder.
        dense_images: Whether rows have 7B's ratio of image to text positions.
        seeds: Its seeds.
    """

    name: str
    group: str
    experts: Mapping[str, Any] = field(default_factory=dict)
    regime: str = "full"
    lora_rank: int = 0
    expert_rate: float = 1.0
    width: int = WIDTH
    dense_images: bool = False
    seeds: tuple[int, ...] = SEEDS

    @property
    def expert_fields(self) -> dict[str, Any]:
        """Expert fields of the configuration."""
        return {**DEFAULT_EXPERTS, **self.experts}


GROUPS = {
    "common_rate": "Which experts, all parameters at one learning rate",
    "ablation": "Which experts (Table 1)",
    "controls": "Static and latent controls, whole model trained (Table 5)",
    "scope": "Scope and pooling of the language guidance",
    "efficient": "Controls with a frozen LLM (Table 6)",
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


def _static(width: int = WIDTH, is_equal: bool = True) -> dict[str, Any]:
    rank = find_static_rank(width) if is_equal else SIZES["expert_hidden_dim"]
    return {"expert_source": "static", "expert_hidden_dim": rank}


def _own_rate(name: str, group: str, experts: Mapping[str, Any], **fields: Any) -> Arm:
    """An arm whose experts learn at their own rate."""
    return Arm(name, group, experts, expert_rate=EXPERT_RATE, **fields)


def list_arms() -> list[Arm]:
    """List all arms, in the order in which they run.

    Returns:
        The arms.
    """
    no_visual, no_language = {"visual_expert": "none"}, {"language_expert_layers": "none"}
    return [
        Arm("llava", "common_rate", NO_EXPERTS),
        Arm("common_rate_no_visual", "common_rate", no_visual),
        Arm("common_rate_no_language", "common_rate", no_language),
        Arm("common_rate_guided", "common_rate"),
        _own_rate("guided", "ablation", {}),
        _own_rate("no_language", "ablation", no_language),
        _own_rate("no_visual", "ablation", no_visual),
        _own_rate("latent", "controls", {"expert_source": "latent"}),
        Arm("static_equal_parameters", "controls", _static()),
        _own_rate("static_equal_parameters_slow", "controls", _static()),
        Arm("static_equal_r", "controls", _static(is_equal=False)),
        _own_rate("static_equal_r_slow", "controls", _static(is_equal=False)),
        *_list_scope_arms(),
        *_list_efficient_arms(),
        *_list_variant_arms(),
        *_list_width_arms(),
    ]


def _list_scope_arms() -> list[Arm]:
    def prompt(pooling: str) -> dict[str, Any]:
        return {"language_guidance_scope": "prompt", "language_guidance_pooling": pooling}

    dense: dict[str, Any] = {"dense_images": True, "seeds": FEW_SEEDS}
    return [
        *(_own_rate(f"prompt_{name}", "scope", prompt(name)) for name in ("mean", "text", "last")),
        _own_rate("dense_token", "scope", {}, **dense),
        _own_rate("dense_prompt", "scope", prompt("mean"), **dense),
    ]


def _list_efficient_arms() -> list[Arm]:
    def build(
        name: str, experts: Mapping[str, Any], lora_rank: int = 0, expert_rate: float = 1.0
    ) -> Arm:
        name = f"efficient_{name}"
        return Arm(name, "efficient", experts, "efficient", lora_rank, expert_rate)

    prompt = {"language_guidance_scope": "prompt"}
    return [
        build("projector", NO_EXPERTS),
        build("guided", {}, expert_rate=EXPERT_RATE),
        build("static_equal_parameters", _static()),
        build("lora_equal_parameters", NO_EXPERTS, find_lora_rank(WIDTH)),
        build("guided_prompt", prompt, expert_rate=EXPERT_RATE),
        build("lora_equal_r", NO_EXPERTS, SIZES["expert_hidden_dim"]),
        build("static_equal_r", _static(is_equal=False)),
        build("latent", {"expert_source": "latent"}, expert_rate=EXPERT_RATE),
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
    few: dict[str, Any] = {"seeds": FEW_SEEDS}
    return [
        *(_own_rate(name, "placement", fields, **few) for name, fields in placements.items()),
        *(_own_rate(name, "sizes", fields, **few) for name, fields in sizes.items()),
    ]


def _list_width_arms() -> list[Arm]:
    arms = []
    for width in WIDTHS:
        if width != WIDTH:
            shared: dict[str, Any] = {"width": width, "seeds": FEW_SEEDS}
            arms += [
                Arm(f"width_{width}_llava", "width", NO_EXPERTS, **shared),
                _own_rate(f"width_{width}_guided", "width", {}, **shared),
                Arm(f"width_{width}_static", "width", _static(width), **shared),
            ]
    return arms
