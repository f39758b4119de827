"""The second reader finds every layout's weights, without the conversion's tables."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperllava_hf.conversion import reference_weights
from hyperllava_hf.conversion.reference_weights import ReferenceWeights, find_canonical_name
from hyperllava_hf.conversion.source_parts import SourceParts
from tests.conversion.adapter_writers import VARIANTS, write_lora
from tests.conversion.fork_writers import write_fork
from tests.conversion.layout_writers import (
    write_delta,
    write_llava_hf,
    write_original,
    write_own,
    write_projector,
)
from tests.conversion.reference_parts import as_part, as_parts
from tests.conversion.tiny_llava import EMBEDDINGS, draw_state

LAYOUTS = {
    "original .bin": write_original,
    "original .safetensors": lambda f: write_original(f, kind="safetensors", num_shards=3),
    "original with inv_freq": lambda f: write_original(f, inv_freq=True, model_type="llava_llama"),
    "original with its tower": lambda f: write_original(f, tower="inside"),
    "tower in a whole CLIP": lambda f: write_original(f, tower="whole"),
    "original v1.6": lambda f: write_original(f, v16=True),
    "original fp16": lambda f: write_original(f, dtype=torch.float16),
    "llava-hf old": lambda f: write_llava_hf(f, "old"),
    "llava-hf current": lambda f: write_llava_hf(f, "current", kind="bin"),
    "llava-hf of transformers 5": lambda f: write_llava_hf(f, "current-5"),
    "projector": write_projector,
    "projector of a checkpoint": lambda f: write_projector(f, "checkpoint"),
    "fork": write_fork,
    "fork in other names": lambda f: write_fork(f, "other"),
    "hyperllava": write_own,
    "delta": write_delta,
}


def load_all(weights):
    return {key: weights.load(key) for key in weights}


def assert_same_state(found, expected, **tolerance):
    """Same names, values of the vocabulary's stored rows the same."""
    assert set(found) == set(expected)
    for key, tensor in found.items():
        right = expected[key]
        if key in EMBEDDINGS:
            right = right[: len(tensor)]
        torch.testing.assert_close(tensor.float(), right.float(), msg=key, **tolerance)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_as_the_known_llava(name, tmp_path):
    source = LAYOUTS[name](tmp_path / "source")
    weights = ReferenceWeights(as_parts(source))
    assert_same_state(load_all(weights), source.expected, rtol=0, atol=0)
    for key in weights:
        assert weights.shape(key) == weights.load(key).shape
        assert key in weights
    assert "model.language_model.layers.9.input_layernorm.weight" not in weights


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_is_merged_by_its_formula(variant, kind, tmp_path):
    source = write_lora(tmp_path / "source", variant, kind)
    weights = ReferenceWeights(as_parts(source))
    # PEFT multiplies first and adds then; the formula is summed in one go.
    assert_same_state(load_all(weights), source.expected, rtol=1e-6, atol=1e-6)
    adapted = [key for key in weights if weights.rank(key) > 0]
    assert len(adapted) == (4 if variant == "some-layers" else 21)
    down = "model.language_model.layers.0.mlp.down_proj.weight"
    if variant == "patterns":
        assert weights.rank(down) == 2


def test_dora_scales_each_output_to_its_magnitude(tmp_path):
    source = write_lora(tmp_path / "source", "plain", "safetensors")
    path = source.path / "adapter_model.safetensors"
    module = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    magnitude = torch.linspace(0.5, 2, 41)
    save_file({**load_file(path), f"{module}magnitude_vector": magnitude}, path)
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    found = ReferenceWeights(as_parts(source)).load(key)
    direction = source.expected[key].double()
    length = direction.pow(2).sum(1, keepdim=True).sqrt()
    expected = (magnitude[:, None] * direction / length).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_lora_of_the_embedding_is_transposed(tmp_path):
    state = draw_state()
    save_file({"model.embed_tokens.weight": state[EMBEDDINGS[0]]}, tmp_path / "model.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 331), (24, 2)))
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    save_file({prefix + "A": down, prefix + "B": up}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3}))
    weights = ReferenceWeights(
        SourceParts(
            "lora",
            folder,
            (folder / "adapter_model.safetensors",),
            base=as_part("llama", tmp_path),
        )
    )
    expected = state[EMBEDDINGS[0]] + 1.5 * torch.einsum("or,ri->io", up, down)
    torch.testing.assert_close(weights.load(EMBEDDINGS[0]), expected)


def test_lora_parts_that_are_not_understood_are_refused(tmp_path):
    source = write_lora(tmp_path / "source", "plain", "safetensors")
    path = source.path / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    save_file({name: torch.ones(24)}, path)
    with pytest.raises(ValueError, match=r"found .*lora_B\.bias in adapter_model"):
        ReferenceWeights(as_parts(source))


def test_experts_are_left_out_unless_asked_for(tmp_path):
    source = write_own(tmp_path / "source")
    parts = as_parts(source)
    assert not set(ReferenceWeights(parts)) & set(source.experts)
    with_experts = load_all(ReferenceWeights(parts, with_experts=True))
    assert_same_state(with_experts, {**source.expected, **source.experts}, rtol=0, atol=0)


def test_stage_one_embeddings_of_new_tokens_follow_the_base(tmp_path):
    source = write_projector(tmp_path / "source")
    path = source.path / "mm_projector.bin"
    new_rows = torch.arange(48).reshape(2, 24).float()
    torch.save({**torch.load(path), "model.embed_tokens.weight": new_rows}, path)
    weights = ReferenceWeights(as_parts(source))
    table = weights.load(EMBEDDINGS[0])
    assert weights.shape(EMBEDDINGS[0]) == (333, 24) == table.shape
    assert torch.equal(table, torch.cat([source.expected[EMBEDDINGS[0]][:331], new_rows]))


@pytest.mark.parametrize("write", [write_lora, write_delta, write_projector])
def test_pieces_of_a_few_rows_make_the_same_tensor(write, tmp_path, monkeypatch):
    source = write(tmp_path / "source")
    path = source.path / "mm_projector.bin"
    if path.exists():
        rows = torch.arange(48).reshape(2, 24).float()
        torch.save({**torch.load(path), "model.embed_tokens.weight": rows}, path)
    weights = ReferenceWeights(as_parts(source))
    whole = load_all(weights)
    monkeypatch.setattr(reference_weights, "CHUNK_VALUES", 130)  # five rows of the embedding
    tolerance = 1e-6 if source.layout == "lora" else 0
    assert_same_state(load_all(weights), whole, rtol=tolerance, atol=tolerance)


def test_tied_head_is_the_embedding(tmp_path):
    source = write_original(tmp_path / "source", kind="safetensors", num_shards=1)
    parts = as_parts(source)
    tensors = {
        key: tensor.clone() for key, tensor in draw_state().items() if key != "lm_head.weight"
    }
    save_file(tensors, parts.weights[0])
    assert "lm_head.weight" not in ReferenceWeights(parts)
    parts.config["tie_word_embeddings"] = True
    assert torch.equal(ReferenceWeights(parts).load("lm_head.weight"), tensors[EMBEDDINGS[0]])


def test_a_tensor_in_two_files_is_an_error(tmp_path):
    source = write_original(tmp_path / "source")
    torch.save({"lm_head.weight": torch.ones(331, 24)}, source.path / "pytorch_model-00009.bin")
    parts = as_parts(source)
    twice = SourceParts(
        "llava", parts.folder, (*parts.weights, source.path / "pytorch_model-00009.bin")
    )
    with pytest.raises(ValueError, match=r"found lm_head\.weight twice"):
        ReferenceWeights(twice)


def test_a_missing_weight_is_named(tmp_path):
    weights = ReferenceWeights(as_parts(write_projector(tmp_path / "source")))
    with pytest.raises(ValueError, match=r"found no model\.nothing in the source"):
        weights.load("model.nothing")


def test_loaded_tensors_have_memory_of_their_own(tmp_path):
    source = write_original(tmp_path / "source", kind="safetensors", num_shards=1)
    parts = as_parts(source)
    weights = ReferenceWeights(parts)
    before = parts.weights[0].read_bytes()
    tensor = weights.load("lm_head.weight")
    assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
    tensor.zero_()
    assert parts.weights[0].read_bytes() == before
    assert weights.load("lm_head.weight").count_nonzero() > 0


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.image_newline",
        "model.mm_projector.visual_expert.first.bias_up",
        "model.layers.16.mlp.my_expert.weight",
        "text_model.encoder.layers.0.mlp.fc1.weight",
        "visual_projection.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
        "model.mm_projector.weight",
    ],
)
def test_what_is_no_parameter_of_llava_has_no_name(name):
    assert find_canonical_name(name) is None


def test_nothing_of_the_conversion_is_used():
    """Else a mistake there would be on both sides of the comparison."""
    tree = ast.parse(Path(reference_weights.__file__).read_text(encoding="utf-8"))
    imported = {
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level > 0 or "hyperllava" in node.module)
    }
    assert imported == {"source_parts"}
