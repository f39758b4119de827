"""Training of arms: the rates of what is added."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperllava_hf.evidence import arm_runs
from hyperllava_hf.evidence.arm_models import add_lora, set_trained
from hyperllava_hf.evidence.arm_runs import RunFactory, name_alignment
from hyperllava_hf.evidence.arm_training import train_stage
from hyperllava_hf.evidence.rates import COMMON_RATES, Rates
from hyperllava_hf.evidence.settings import SMOKE
from hyperllava_hf.evidence.training_rows import build_training_set
from tests.evidence.evidence_models import ARMS, build_model, fill_experts, get_processor, get_tower

# What each arm's own rates reach, by modality, and nothing else.
SCALED = {
    "guided": ("visual_expert.h", "language_expert.h"),
    "prompt_mean": ("visual_expert.h", "language_expert.h"),
    "latent": ("visual_expert.h", "language_expert.h"),
    "static_equal_r": ("visual_expert.", "language_expert."),
    "efficient_lora_equal_r": ("nothing", ".lora_"),
}


@pytest.mark.parametrize("arm", list(SCALED))
def test_what_is_added_learns_at_its_rates_and_all_else_at_the_common_one(
    arm: str, tmp_path: Path
) -> None:
    processor = get_processor()
    rows = build_training_set(processor, get_tower(), 4, num_turns=1)
    # AdamW's first step moves an entry by the rate, whatever its gradient, if there is no warm-up.
    settings = replace(SMOKE.instruct, num_steps=1, batch_size=4, learning_rate=1e-3, seed=1)
    moved = {}
    own = Rates(visual=0.1, language=0.3)
    for rates in (COMMON_RATES, own):
        model = build_model(ARMS[arm], tmp_path)
        fill_experts(model)
        if ARMS[arm].lora_rank:
            add_lora(model, ARMS[arm].lora_rank, 1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        set_trained(model, ARMS[arm].regime)
        train_stage(model, rows, "instruct", settings, processor, rates=rates)
        moved[rates] = {
            name: (p.detach() - before[name]).abs().max().item()
            for name, p in model.named_parameters()
            if p.requires_grad and "embed_tokens" not in name
        }
    visual, language = SCALED[arm]
    reached = set()
    for name, distance in moved[COMMON_RATES].items():
        modality = "visual" if visual in name else "language" if language in name else None
        reached.add(modality)
        share = getattr(own, modality) if modality else 1.0
        # LoRA's A learns nothing before its B is not zero.
        assert distance > 0 or "lora_A" in name, name
        assert moved[own][name] == pytest.approx(share * distance, rel=0.05, abs=1e-7), name
    assert reached >= {"language", None}
    assert ("visual" in reached) == (visual != "nothing")


def test_runs_share_a_first_stage_only_if_it_is_the_same() -> None:
    def name(arm: str, seed: int = 1, **changes: Any) -> str:
        return name_alignment(replace(ARMS[arm], **changes), seed)

    assert name("guided") == name("prompt_mean") == name("efficient_guided") == name("no_language")
    assert name("guided") == name("long_guided")
    assert name("llava") == name("no_visual") == name("efficient_lora_equal_r")
    assert name("guided") == name("guided", rates=ARMS["guided"].rates._replace(language=9.0))
    different = ("llava", "guided", "latent", "static_equal_r", "m_8")
    different += ("static_equal_parameters", "dense_token", "visual_both")
    names = {name(arm) for arm in different} | {name("guided", 2), name("width_64_guided")}
    names.add(name("guided", rates=Rates(visual=9.0)))
    assert len(names) == len(different) + 3


def test_a_long_arm_takes_more_steps_in_stage_two_alone(tmp_path: Path) -> None:
    steps = {}

    def record(model: Any, rows: Any, stage: str, settings: Any, *rest: Any) -> list[float]:
        steps[stage] = settings.num_steps
        return [0.0]

    factory = RunFactory(SMOKE, None, None, get_processor(), tmp_path)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arm_runs, "train_stage", record)
        for stage in ("align", "instruct"):
            factory.train_stage(None, ARMS["long_guided"], 1, stage)
    assert steps == {"align": SMOKE.align.num_steps, "instruct": 4 * SMOKE.instruct.num_steps}
