"""Training of arms: the experts' own rate."""

from dataclasses import replace
from pathlib import Path

import pytest

from hyperllava_hf.evidence.arm_models import set_trained
from hyperllava_hf.evidence.arm_runs import name_alignment
from hyperllava_hf.evidence.arm_training import train_stage
from hyperllava_hf.evidence.settings import SMOKE
from hyperllava_hf.evidence.training_rows import build_training_set
from tests.evidence.evidence_models import ARMS, build_model, fill_experts, get_processor, get_tower


def test_experts_learn_at_their_own_rate_and_all_else_at_the_common_one(tmp_path: Path) -> None:
    processor = get_processor()
    rows = build_training_set(processor, get_tower(), 4, num_turns=1)
    # AdamW's first step moves an entry by the rate, whatever its gradient, if there is no warm-up.
    settings = replace(SMOKE.instruct, num_steps=1, batch_size=4, learning_rate=1e-3, seed=1)
    moved = {}
    for rate in (1.0, 0.1):
        model = build_model(ARMS["guided"], tmp_path)
        fill_experts(model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        set_trained(model, "full")
        train_stage(model, rows, "instruct", settings, processor, expert_rate=rate)
        moved[rate] = {
            name: (p.detach() - before[name]).abs().max().item()
            for name, p in model.named_parameters()
        }
    for name, distance in moved[1.0].items():
        if "embed_tokens" in name:
            continue
        share = 0.1 if "_expert." in name else 1.0
        assert distance > 0, name
        assert moved[0.1][name] == pytest.approx(share * distance, rel=0.05, abs=1e-7), name


def test_runs_share_a_first_stage_only_if_it_is_the_same() -> None:
    def name(arm: str, seed: int = 1) -> str:
        return name_alignment(ARMS[arm], seed)

    assert name("guided") == name("prompt_mean") == name("efficient_guided") == name("no_language")
    assert name("llava") == name("no_visual") == name("efficient_lora_equal_r")
    different = ("llava", "guided", "common_rate_guided", "latent", "static_equal_r", "m_8")
    different += ("static_equal_r_slow", "static_equal_parameters", "dense_token", "visual_both")
    names = {name(arm) for arm in different} | {name("guided", 2), name("width_64_guided")}
    assert len(names) == len(different) + 2
