"""The arms: what the table says of them is true of the models."""

from pathlib import Path

import pytest
import torch

from hyperllava_hf.evidence.arm_models import add_lora, set_trained
from hyperllava_hf.evidence.comparisons import MAIN_PAIRS, list_pairs
from hyperllava_hf.evidence.costs import (
    count_added_operations,
    count_base_operations,
    count_expert_parameters,
    count_lora_parameters,
)
from tests.evidence.evidence_models import ARMS, build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoders")


@pytest.mark.parametrize("name", list(ARMS))
def test_counted_parameters_are_those_of_the_model(name: str, folder: Path) -> None:
    arm = ARMS[name]
    model = build_model(arm, folder)
    if arm.lora_rank:
        add_lora(model, arm.lora_rank, 1)
    experts = sum(p.numel() for n, p in model.named_parameters() if "_expert" in n)
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert count_expert_parameters(arm.width, arm.expert_fields) == experts
    assert count_lora_parameters(arm.width, arm.lora_rank) == lora


@pytest.mark.parametrize(
    ("control", "guided"),
    [
        ("static_equal_parameters", "guided"),
        ("efficient_static_equal_parameters", "efficient_guided"),
        ("efficient_lora_equal_parameters", "efficient_guided"),
        ("width_64_static", "width_64_guided"),
        ("width_192_static", "width_192_guided"),
    ],
)
def test_arms_of_equal_parameters_train_as_many_within_two_per_cent(
    control: str, guided: str, folder: Path
) -> None:
    trained = {}
    for name in (control, guided):
        model = build_model(ARMS[name], folder)
        before = set_trained(model, "efficient")
        if ARMS[name].lora_rank:
            add_lora(model, ARMS[name].lora_rank, 1)
        trained[name] = set_trained(model, ARMS[name].regime)
        assert trained[name] >= before
    assert trained[control] == pytest.approx(trained[guided], rel=0.02)


def test_regimes_train_what_the_paper_trains(folder: Path) -> None:
    model = build_model(ARMS["guided"], folder)
    marks = {"align": "multi_modal_projector.", "efficient": "_expert", "full": "mlp.up_proj"}
    trained = {}
    for phase in marks:
        set_trained(model, phase)
        trained[phase] = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("multi_modal_projector." in name for name in trained["align"])
    added = trained["efficient"] - trained["align"]
    assert added
    assert all("language_expert." in name for name in added)
    assert trained["full"] == {n for n, _ in model.named_parameters()}


def test_arms_of_a_seed_start_from_the_same_values_and_another_seed_from_others(
    folder: Path,
) -> None:
    states = {
        name: build_model(ARMS[name], folder).state_dict()
        for name in ("llava", "guided", "prompt_mean", "blocks_all")
    }
    guided = states["guided"]
    for name, state in states.items():
        shared = [k for k in state if k in guided and state[k].shape == guided[k].shape]
        assert len(shared) > 30
        for key in shared:
            assert torch.equal(state[key], guided[key]), (name, key)
    other = build_model(ARMS["guided"], folder, seed=2).state_dict()
    changed = {key for key in guided if not torch.equal(guided[key], other[key])}
    assert any("linear_1.weight" in key for key in changed)
    assert any("encoder_weight" in key for key in changed)
    assert not any("self_attn" in key for key in changed)


def test_every_comparison_is_of_two_arms_that_share_seeds() -> None:
    assert set(MAIN_PAIRS) <= set(list_pairs())
    for pair in list_pairs():
        assert set(ARMS[pair.first].seeds) & set(ARMS[pair.second].seeds)


def test_operations_follow_the_shapes_of_the_products() -> None:
    width, fields = 8, {"expert_input_dim": 2, "expert_hidden_dim": 1, "expert_source": "static"}
    # A static adapter of rank 1 in the projector and in two blocks: 3 D numbers a position each.
    visual, language = 192 * 2 + width, 3 * width
    expected = 2 * (16 * visual + 2 * 70 * language)
    assert count_added_operations(width, fields, 0) == expected
    assert count_added_operations(width, {**fields, "visual_expert": "none"}, 0) == 2 * 140 * 24
    no_experts = {**fields, "visual_expert": "none", "language_expert_layers": "none"}
    assert count_added_operations(width, no_experts, 0) == 0
    # LoRA of rank 1 on the seven linear layers of four blocks.
    lora = 4 * (4 * 2 * width + 3 * (width + 3 * width))
    assert count_added_operations(width, no_experts, 1) == 2 * 70 * lora
    assert count_base_operations(128, 70, 16) > 100 * 10**6
