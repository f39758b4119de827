"""What each stage trains and freezes (paper, Sec. 4.1), on a tiny HyperLLaVA of all groups."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from hyperllava_hf.modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.training.stages import TRAINED_GROUPS, get_group, set_trainable


@pytest.fixture
def model() -> HyperLlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = HyperLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=31,
        expert_input_dim=4,
        expert_hidden_dim=2,
    )
    return HyperLlavaForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.vision_tower.vision_model.embeddings.class_embedding", "vision_tower"),
        ("model.multi_modal_projector.linear_1.weight", "projector"),
        ("model.multi_modal_projector.visual_expert.expert_1.bias_up", "visual_expert"),
        ("model.language_model.layers.1.language_expert.bias_up", "language_expert"),
        ("model.language_model.layers.1.mlp.up_proj.weight", "language_model"),
        ("lm_head.weight", "language_model"),
    ],
)
def test_groups_are_told_by_names(name: str, group: str) -> None:
    assert get_group(name) == group


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("align", {"projector", "visual_expert"}),
        ("instruct", {"projector", "visual_expert", "language_expert", "language_model"}),
    ],
)
def test_stage_trains_what_the_paper_says(model, stage: str, trained: set[str]) -> None:
    counts = set_trainable(model, stage)
    assert set(counts) == trained == TRAINED_GROUPS[stage]
    assert min(counts.values()) > 0
    found = {get_group(n) for n, p in model.named_parameters() if p.requires_grad}
    frozen = {get_group(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert found == trained
    assert not found & frozen
    assert "vision_tower" in frozen
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_stages_can_follow_each_other(model) -> None:
    set_trainable(model, "instruct")
    set_trainable(model, "align")
    assert not model.lm_head.weight.requires_grad
    assert model.model.multi_modal_projector.linear_1.weight.requires_grad
    assert isinstance(model.lm_head.weight, torch.nn.Parameter)


def test_unknown_stage_names_the_known_ones(model) -> None:
    with pytest.raises(ValueError, match="found stage 'pretrain', expected one of align, instruct"):
        set_trainable(model, "pretrain")
