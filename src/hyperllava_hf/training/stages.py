"""The two stages of HyperLLaVA's training (paper, Sec. 4.1): what each trains and what it freezes.

| stage    | trained                                                        | frozen            |
| -------- | -------------------------------------------------------------- | ----------------- |
| align    | projector with visual expert                                   | vision tower, LLM |
| instruct | projector with visual expert, language experts, LLM            | vision tower      |

The parameter-efficient forms of stage 2 (paper, Table 6) leave the LLM as it is: "frozen", or with
a LoRA beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

STAGES = ("align", "instruct")
# Groups of parameters, each with the piece of a name that marks it; the first that fits counts.
GROUP_MARKS = {
    "lora": ".lora_",
    "visual_expert": "visual_expert.",
    "language_expert": "language_expert.",
    "projector": "multi_modal_projector.",
    "vision_tower": "vision_tower.",
}
LANGUAGE_MODEL = "language_model"
TRAINED_GROUPS = {
    "align": frozenset({"projector", "visual_expert"}),
    "instruct": frozenset({"projector", "visual_expert", "language_expert", LANGUAGE_MODEL}),
}
PRINTED_GROUPS = (
    "vision_tower",
    "projector",
    "visual_expert",
    LANGUAGE_MODEL,
    "lora",
    "language_expert",
)
# What PEFT keeps of a module that is trained whole; never used.
ORIGINAL_MARK = ".original_module."


@dataclass(frozen=True)
class GroupCount:
    """How much of a group is trained.

    Attributes:
        group: Its name.
        num_trained: Trained numbers.
        num_parameters: All of its numbers.
    """

    group: str
    num_trained: int
    num_parameters: int


def get_group(parameter_name: str) -> str:
    """Name the group that a parameter belongs to.

    Args:
        parameter_name: A name of `model.named_parameters()`.

    Returns:
        A key of `GROUP_MARKS`, or "language_model" for the rest.
    """
    for group, mark in GROUP_MARKS.items():
        if mark in parameter_name:
            return group
    return LANGUAGE_MODEL


def get_trained_groups(stage: str, language_model: str = "full") -> frozenset[str]:
    """Name the groups that a stage trains.

    Args:
        stage: "align" or "instruct".
        language_model: What "instruct" does to the decoder: "full", "frozen" or "lora".

    Returns:
        Names of groups.

    Raises:
        ValueError: If there is no such stage or no such treatment.
    """
    if stage not in TRAINED_GROUPS:
        raise ValueError(f"found stage {stage!r}, expected one of {', '.join(STAGES)}")
    decoder = {"full": {LANGUAGE_MODEL}, "frozen": set(), "lora": {"lora"}}
    if language_model not in decoder:
        raise ValueError(f"found language_model {language_model!r}, expected full, frozen or lora")
    if stage == "align":
        return TRAINED_GROUPS[stage]
    return TRAINED_GROUPS[stage] - {LANGUAGE_MODEL} | decoder[language_model]


def set_trainable(model: nn.Module, stage: str, language_model: str = "full") -> dict[str, int]:
    """Freeze and unfreeze a model's parameters for a stage.

    Args:
        model: A HyperLLaVA, with LoRA in place where that is trained.
        stage: "align" or "instruct".
        language_model: What "instruct" does to the decoder: "full", "frozen" or "lora".

    Returns:
        The number of trained parameters in each trained group.

    Raises:
        ValueError: If there is no such stage or no such treatment.
    """
    trained = dict.fromkeys(sorted(get_trained_groups(stage, language_model)), 0)
    for name, parameter in model.named_parameters():
        group = get_group(name)
        is_trained = group in trained and ORIGINAL_MARK not in name
        parameter.requires_grad_(is_trained)
        if is_trained:
            trained[group] += count_numbers(parameter)
    return trained


def count_numbers(parameter: nn.Parameter) -> int:
    """Count the numbers of a parameter, also of one that 4 bits or ZeRO-3 have packed away.

    Args:
        parameter: The parameter.

    Returns:
        How many numbers it stands for.
    """
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return getattr(parameter, "ds_numel", parameter.numel())


def count_groups(model: nn.Module) -> list[GroupCount]:
    """Count what is trained, group by group.

    Args:
        model: A model after `set_trainable`.

    Returns:
        One count a group that the model has, in the order of the forward pass.
    """
    counts = {group: [0, 0] for group in PRINTED_GROUPS}
    for name, parameter in model.named_parameters():
        if ORIGINAL_MARK in name:
            continue
        number = count_numbers(parameter)
        count = counts[get_group(name)]
        count[0] += number if parameter.requires_grad else 0
        count[1] += number
    return [GroupCount(group, *count) for group, count in counts.items() if count[1]]


def format_counts(counts: list[GroupCount]) -> list[str]:
    """Write what is trained as lines of text.

    Args:
        counts: What `count_groups` returned.

    Returns:
        One line a group, and the sum.
    """
    total = GroupCount(
        "total", sum(c.num_trained for c in counts), sum(c.num_parameters for c in counts)
    )
    return [
        f"{c.group:<16}{c.num_trained:>16,} of {c.num_parameters:>16,} trained "
        f"({100 * c.num_trained / c.num_parameters:.3f} %)"
        for c in [*counts, total]
    ]
