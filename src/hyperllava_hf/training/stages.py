"""The two stages of HyperLLaVA's training (paper, Sec. 4.1): what each trains and what it freezes.

| stage    | trained                                                        | frozen            |
| -------- | -------------------------------------------------------------- | ----------------- |
| align    | projector with visual expert                                   | vision tower, LLM |
| instruct | projector with visual expert, language experts, LLM            | vision tower      |
"""

from __future__ import annotations

from torch import nn

STAGES = ("align", "instruct")
# Groups of parameters, each with the piece of a name that marks it; the first that fits counts.
GROUP_MARKS = {
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


def set_trainable(model: nn.Module, stage: str) -> dict[str, int]:
    """Freeze and unfreeze a model's parameters for a stage.

    Args:
        model: A HyperLLaVA.
        stage: "align" or "instruct".

    Returns:
        The number of trained parameters in each trained group.

    Raises:
        ValueError: If there is no such stage.
    """
    if stage not in TRAINED_GROUPS:
        raise ValueError(f"found stage {stage!r}, expected one of {', '.join(STAGES)}")
    trained = dict.fromkeys(sorted(TRAINED_GROUPS[stage]), 0)
    for name, parameter in model.named_parameters():
        group = get_group(name)
        parameter.requires_grad_(group in trained)
        if group in trained:
            trained[group] += parameter.numel()
    return trained
