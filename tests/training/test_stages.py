"""What each stage trains and freezes (paper, Sec. 4.1), on a tiny HyperLLaVA of all groups."""

import copy
import re

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from hyperllava_hf.modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.training.lora import lora_config
from hyperllava_hf.training.stages import (
    TRAINED_GROUPS,
    count_groups,
    format_counts,
    get_group,
    set_trainable,
)


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


@pytest.mark.parametrize(
    ("language_model", "decoder"), [("full", {"language_model"}), ("frozen", set())]
)
def test_parameter_efficient_instruct_freezes_the_decoder(model, language_model, decoder) -> None:
    counts = set_trainable(model, "instruct", language_model)
    expected = {"projector", "visual_expert", "language_expert"} | decoder
    assert set(counts) == expected
    found = {get_group(n) for n, p in model.named_parameters() if p.requires_grad}
    assert found == expected


def test_lora_trains_adapters_and_the_copies_that_peft_uses(model) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, lora_config(r=2))
    counts = set_trainable(wrapped, "instruct", "lora")
    assert set(counts) == {"projector", "visual_expert", "language_expert", "lora"}
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert not any("original_module" in name or "base_layer" in name for name in trained)
    # What PEFT would train by itself, and nothing else.
    fresh = peft.get_peft_model(copy.deepcopy(model), lora_config(r=2))
    assert trained == {n for n, p in fresh.named_parameters() if p.requires_grad}


def test_counts_are_of_the_whole_model_and_readable(model) -> None:
    set_trainable(model, "align")
    counts = {count.group: count for count in count_groups(model)}
    total = sum(p.numel() for p in model.parameters())
    assert sum(count.num_parameters for count in counts.values()) == total
    assert counts["projector"].num_trained == counts["projector"].num_parameters
    assert counts["language_model"].num_trained == 0
    lines = format_counts(list(counts.values()))
    assert [line.split()[0] for line in lines] == [*counts, "total"]
    assert re.search(rf" of +{total:,} trained \(\d+\.\d\d\d %\)$", lines[-1])


def test_unknown_treatment_of_the_decoder_names_the_known_ones(model) -> None:
    with pytest.raises(ValueError, match="found language_model 'half', expected full, frozen or l"):
        set_trainable(model, "instruct", "half")
