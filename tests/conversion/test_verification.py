"""Verification passes what is equal and finds, and places, what is not, in both modes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.conversion.block_loading import build_on_meta, get_canonical_name, load_all
from hyperllava_hf.conversion.block_outputs import measure_difference
from hyperllava_hf.conversion.fixed_inputs import build_rows
from hyperllava_hf.conversion.reference_weights import ReferenceWeights
from hyperllava_hf.conversion.verification import choose_mode, verify
from tests.conversion.adapter_writers import write_lora
from tests.conversion.fork_writers import write_fork
from tests.conversion.layout_writers import (
    write_delta,
    write_llava_hf,
    write_original,
    write_own,
    write_projector,
)
from tests.conversion.reference_parts import as_parts
from tests.conversion.tiny_llava import (
    EXPERTS,
    IMAGE,
    VOCABULARY,
    as_hyperllava,
    as_llava,
    draw_experts,
    draw_state,
    llava_fields,
    pad_vocabulary,
)

MODES = ["whole", "blocks"]
DEPTH = 4 * 3 + 4 * 3 + 3  # products one after the other, by the error model
SOURCES = {
    "original .bin": write_original,
    "original with its tower": lambda f: write_original(f, kind="safetensors", tower="inside"),
    "llava-hf": write_llava_hf,
    "llava-hf of transformers 5": lambda f: write_llava_hf(f, "current-5"),
    "projector": write_projector,
}


def write_hyperllava(folder, state, experts=None, dtype=torch.float32, **fields):
    """A result; experts None leaves them as initialised."""
    config = HyperLlavaConfig(**llava_fields(), **{**EXPERTS, **fields})
    model = HyperLlavaForConditionalGeneration(config)
    model.load_state_dict({**state, **(experts or {})}, strict=False)
    model.to(dtype).save_pretrained(folder, max_shard_size="60KB")
    return folder


def check(source, destination, to="hyperllava", **options):
    options = {"mode": "blocks", **options}
    # transformers keeps what it is given, so each call gets its own.
    stated = llava_fields()
    return verify(as_parts(source), destination, to, stated, VOCABULARY, **options)


def assert_equal_to_the_bit(found):
    assert found.passed, found.sentences
    assert (found.largest_difference, found.tolerance) == (0, 0)
    assert (found.where, found.first_block, found.wrong_tensors) == (None, None, ())
    assert found.largest_weight_difference == 0
    assert found.num_tokens == VOCABULARY
    assert found.largest_logit > 1


def without_time(found):
    return dataclasses.replace(found, seconds=0, mode="")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_faithful_hyperllava_is_equal_to_the_bit(name, mode, tmp_path):
    source = SOURCES[name](tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected)
    found = check(source, folder, mode=mode)
    assert_equal_to_the_bit(found)
    assert (found.mode, found.expert_shift) == (mode, None)
    # Two rows: 32 text tokens each, and 16 image positions in one of them.
    assert found.num_logits == (32 + 16 + 32) * VOCABULARY
    assert "All logits are equal" in "\n".join(found.sentences)
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


@pytest.mark.parametrize("mode", MODES)
def test_the_way_back_to_llava_hf_is_equal_to_the_bit(mode, tmp_path):
    source = write_own(tmp_path / "source")
    as_llava(source.expected).save_pretrained(tmp_path / "result")
    found = check(source, tmp_path / "result", "llava-hf", mode=mode, experts_kept=False)
    assert_equal_to_the_bit(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", ["inside", "outside"])
def test_the_way_back_to_llava_is_equal_to_the_bit(tower, mode, tmp_path):
    state = draw_state()
    source = write_llava_hf(tmp_path / "source", state=pad_vocabulary(state))
    result = write_original(tmp_path / "result", kind="safetensors", tower=tower, state=state)
    # The source's vocabulary is padded, which the original layout has no place for.
    stated = llava_fields()
    found = verify(as_parts(source), result.path, "llava", stated, 384, mode=mode)
    assert_equal_to_the_bit(found)
    assert found.notes == ("The source's last 53 rows of the vocabulary were not compared.",)


@pytest.mark.parametrize("layers", [-2, [-2, -1], [0, 1]])
def test_features_of_several_layers_are_compared(layers, tmp_path):
    fields = {**llava_fields(), "vision_feature_layer": layers}
    folders = tmp_path / "source", tmp_path / "result"
    config = LlavaConfig(**fields)
    llava = type(as_llava(pad_vocabulary(draw_state())))(config)
    llava.save_pretrained(folders[0])
    weights = as_parts_of_llava_hf(folders[0])
    model = HyperLlavaForConditionalGeneration.from_pretrained(folders[0])
    model.save_pretrained(folders[1])
    found = verify(weights, folders[1], "hyperllava", fields, 384, mode="blocks")
    assert found.passed
    assert found.largest_difference == 0


def as_parts_of_llava_hf(folder):
    from tests.conversion.reference_parts import as_part

    return as_part("llava-hf", folder)


def test_whole_models_and_blocks_find_the_same(tmp_path):
    source = write_own(tmp_path / "source")
    state = dict(source.expected)
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    state[key] = state[key] * 1.001
    folder = write_hyperllava(tmp_path / "result", state, source.experts)
    whole, blocks = (without_time(check(source, folder, mode=mode)) for mode in MODES)
    assert not whole.passed
    assert whole.largest_difference > 0
    assert whole == blocks


@pytest.mark.parametrize("scope", ["token", "prompt"])
@pytest.mark.parametrize("mode", MODES)
def test_experts_are_compared_switched_off_and_on(mode, scope, tmp_path):
    source = write_own(tmp_path / "source", language_guidance_scope=scope)
    fields = {"language_guidance_scope": scope}
    folder = write_hyperllava(tmp_path / "result", source.expected, source.experts, **fields)
    found = check(source, folder, mode=mode)
    assert_equal_to_the_bit(found)
    assert found.expert_shift > 0.01
    assert found.num_logits == 2 * (32 + 16 + 32) * VOCABULARY
    assert found.num_tensors == len(source.expected) + len(source.experts)


def test_a_wrong_expert_is_found_with_experts_on(tmp_path):
    source = write_own(tmp_path / "source")
    experts = dict(source.experts)
    key = "model.language_model.layers.2.language_expert.bias_up"
    experts[key] = experts[key].flip(0)
    found = check(source, write_hyperllava(tmp_path / "result", source.expected, experts))
    assert not found.passed
    assert found.first_block == "model.language_model.layers.2"
    assert found.wrong_tensors[0].startswith(key)


def test_attached_experts_leave_the_base_to_compare(tmp_path):
    source = write_original(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected, draw_experts())
    found = check(source, folder)
    assert_equal_to_the_bit(found)
    assert found.expert_shift > 0.01
    assert "switched off" in found.notes[1]


def test_other_experts_than_the_source_had_are_not_compared(tmp_path):
    source = write_own(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected, draw_experts(seed=9))
    assert not check(source, folder).passed
    assert_equal_to_the_bit(check(source, folder, experts_kept=False))


def test_a_fork_says_that_its_experts_did_not_run(tmp_path):
    source = write_fork(tmp_path / "source", "other")
    folder = write_hyperllava(tmp_path / "result", source.expected, source.experts)
    found = check(source, folder)
    assert_equal_to_the_bit(found)
    assert any("manifest" in note for note in found.notes)


def swap(first, second):
    def change(state):
        state[first], state[second] = state[second], state[first]

    return change


def shift_rows(key):
    def change(state):
        state[key] = state[key].roll(1, 0)

    return change


LAYER = "model.language_model.layers.1"
TOWER = "model.vision_tower.vision_model"
WRONGS = {
    "projections of the tower": (
        swap(
            f"{TOWER}.encoder.layers.1.self_attn.k_proj.weight",
            f"{TOWER}.encoder.layers.1.self_attn.q_proj.weight",
        ),
        f"{TOWER}.encoder.layers.1",
        f"{TOWER}.encoder.layers.1.self_attn.k_proj.weight",
    ),
    "a layer above the features": (
        shift_rows(f"{TOWER}.encoder.layers.2.mlp.fc1.weight"),
        f"{TOWER}.encoder.layers.2",
        f"{TOWER}.encoder.layers.2.mlp.fc1.weight",
    ),
    "rows of the decoder": (
        shift_rows(f"{LAYER}.mlp.gate_proj.weight"),
        LAYER,
        f"{LAYER}.mlp.gate_proj.weight",
    ),
    "rows of the projector": (
        shift_rows("model.multi_modal_projector.linear_2.bias"),
        "model.multi_modal_projector",
        "model.multi_modal_projector.linear_2.bias",
    ),
    "rows of the head": (shift_rows("lm_head.weight"), "lm_head", "lm_head.weight"),
    "rows of the embedding": (
        shift_rows("model.language_model.embed_tokens.weight"),
        "model.language_model.embed_tokens",
        "model.language_model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRONGS)
def test_a_wrong_tensor_is_found_and_placed(name, mode, tmp_path):
    change, block, key = WRONGS[name]
    source = write_original(tmp_path / "source")
    state = dict(source.expected)
    change(state)
    found = check(source, write_hyperllava(tmp_path / "result", state), mode=mode)
    assert not found.passed
    assert found.first_block == block
    assert any(item.startswith(key + " (row") for item in found.wrong_tensors)
    text = "\n".join(found.sentences)
    assert "Verification failed" in text
    assert f"The first block that differs is {block}." in text
    if name != "a layer above the features":  # which no logit depends on
        assert f"at {found.where}; 0 is allowed" in text
        assert found.where.startswith("row '")


def test_swapped_projections_of_a_decoder_without_groups_are_found(tmp_path):
    """With as many key as query heads nothing but the numbers tells them apart."""
    fields = llava_fields()
    fields["text_config"]["num_key_value_heads"] = 4
    model = HyperLlavaForConditionalGeneration(HyperLlavaConfig(**fields, **EXPERTS))
    as_llava_config = LlavaConfig(**{**fields, "text_config": dict(fields["text_config"])})
    llava = type(as_llava(pad_vocabulary(draw_state())))(as_llava_config)
    llava.save_pretrained(tmp_path / "source")
    parts = as_parts_of_llava_hf(tmp_path / "source")
    state = {key: ReferenceWeights(parts).load(key) for key in ReferenceWeights(parts)}
    swap(f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.self_attn.q_proj.weight")(state)
    model.load_state_dict(state, strict=False)
    model.save_pretrained(tmp_path / "result")
    found = verify(parts, tmp_path / "result", "hyperllava", fields, 384, mode="blocks")
    assert not found.passed
    assert found.first_block == LAYER
    assert {item.partition(" ")[0] for item in found.wrong_tensors} == {
        f"{LAYER}.self_attn.k_proj.weight",
        f"{LAYER}.self_attn.q_proj.weight",
    }


@pytest.mark.parametrize("key", [f"{LAYER}.mlp.down_proj.weight", f"{TOWER}.pre_layrnorm.bias"])
def test_one_flipped_bit_in_one_shard_is_found_and_placed(key, tmp_path):
    source = write_original(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][key]
    tensors = load_file(path)
    tensors[key].view(torch.int32).view(-1)[7] ^= 1 << 20
    save_file(tensors, path, metadata={"format": "pt"})
    found = check(source, folder)
    assert not found.passed
    assert key.startswith(found.first_block)
    assert [item.partition(" ")[0] for item in found.wrong_tensors] == [key]


def test_a_row_that_no_input_uses_is_found(tmp_path):
    source = write_original(tmp_path / "source")
    used = {
        token
        for row in build_rows(LlavaConfig(**llava_fields()), VOCABULARY, {330, 331})
        for token in row.input_ids[0].tolist()
    }
    unused = next(token for token in range(5, VOCABULARY) if token not in used)
    state = dict(source.expected)
    key = "model.language_model.embed_tokens.weight"
    state[key] = state[key].clone()
    state[key][unused, 3] += 1
    found = check(source, write_hyperllava(tmp_path / "result", state))
    assert not found.passed
    assert found.largest_difference == 0
    assert found.wrong_tensors == (f"{key} (row {unused})",)


def test_a_wrong_field_of_the_configuration_is_found(tmp_path):
    source = write_original(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-2
    (folder / "config.json").write_text(json.dumps(config))
    found = check(source, folder)
    assert not found.passed
    assert found.first_block == "model.language_model.layers.0"
    assert found.wrong_tensors == ()


def test_the_source_states_its_own_architecture(tmp_path):
    """A conversion that read a field wrongly would state it wrongly on both sides."""
    source = write_original(tmp_path / "source")
    stated = llava_fields()
    stated["text_config"]["rms_norm_eps"] = 1e-2
    stated["vision_feature_layer"] = -1
    folder = tmp_path / "result"
    model = HyperLlavaForConditionalGeneration(HyperLlavaConfig(**stated, **EXPERTS))
    model.load_state_dict(source.expected, strict=False)
    model.save_pretrained(folder)
    found = verify(as_parts(source), folder, "hyperllava", stated, VOCABULARY, mode="blocks")
    assert not found.passed


@pytest.mark.parametrize("mode", MODES)
def test_widening_is_exact_and_narrowing_has_a_bound(mode, tmp_path):
    source = write_original(tmp_path / "source", dtype=torch.float16)
    state = {key: tensor.float() for key, tensor in source.expected.items()}
    wide = write_hyperllava(tmp_path / "wide", state)
    assert_equal_to_the_bit(check(source, wide, mode=mode))
    narrow = write_hyperllava(tmp_path / "narrow", state, dtype=torch.bfloat16)
    found = check(source, narrow, mode=mode)
    assert found.passed, found.sentences
    assert 0 < found.largest_difference < found.tolerance
    assert found.tolerance == pytest.approx(2**-8 * DEPTH * found.largest_logit)
    assert 0 < found.largest_weight_difference < 0.1


def test_a_wrong_row_does_not_hide_behind_the_bound(tmp_path):
    source = write_original(tmp_path / "source", dtype=torch.float16)
    state = {key: tensor.float() for key, tensor in source.expected.items()}
    key = f"{LAYER}.mlp.gate_proj.weight"
    state[key][5] = state[key][6]
    found = check(source, write_hyperllava(tmp_path / "result", state, dtype=torch.bfloat16))
    assert not found.passed
    assert found.wrong_tensors == (f"{key} (row 5)",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_lora_keeps_to_its_bound(dtype, tmp_path):
    source = write_lora(tmp_path / "source")
    found = check(source, write_hyperllava(tmp_path / "result", source.expected, dtype=dtype))
    assert found.passed, found.sentences
    assert 0 < found.tolerance
    state = {**source.expected, **draw_state_of_layer()}
    wrong = check(source, write_hyperllava(tmp_path / "wrong", state, dtype=dtype))
    assert not wrong.passed
    assert all(LAYER in item for item in wrong.wrong_tensors)


def draw_state_of_layer():
    """One layer as it was before the adapter."""
    return {key: tensor for key, tensor in draw_state().items() if key.startswith(LAYER)}


def test_an_added_delta_keeps_to_its_bound(tmp_path):
    source = write_delta(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected)
    found = verify(as_parts(source), folder, "hyperllava", llava_fields(), VOCABULARY + 1)
    assert found.passed, found.sentences
    assert found.num_tokens == VOCABULARY + 1
    assert found.tolerance > 0


def test_numbers_that_are_none_are_compared_too(tmp_path):
    state = draw_state()
    key = f"{LAYER}.mlp.gate_proj.weight"
    state[key][5, 2] = float("nan")
    source = write_original(tmp_path / "source", state=state)
    source.expected[key] = state[key]
    found = check(source, write_hyperllava(tmp_path / "same", source.expected))
    assert found.passed
    assert found.largest_difference == 0
    mended = {**source.expected, key: state[key].nan_to_num()}
    found = check(source, write_hyperllava(tmp_path / "other", mended))
    assert not found.passed
    assert found.largest_difference == float("inf")
    assert found.to_dict()["largest_difference"] == "inf"


def test_a_result_without_a_weight_is_an_error(tmp_path):
    source = write_original(tmp_path / "source")
    folder = tmp_path / "result"
    as_hyperllava(source.expected, draw_experts()).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.language_model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    for mode in MODES:
        with pytest.raises(ValueError, match=r"the result lacks 1 weights, .*norm\.weight"):
            check(source, folder, mode=mode)
    path.unlink()
    with pytest.raises(ValueError, match=r"found no model\.safetensors"):
        check(source, folder)


def test_a_shorter_vocabulary_is_an_error(tmp_path):
    source = write_original(tmp_path / "source")
    short = {**llava_fields(300), "image_token_index": 299}
    model = HyperLlavaForConditionalGeneration(HyperLlavaConfig(**short, **EXPERTS))
    model.save_pretrained(tmp_path / "result")
    with pytest.raises(ValueError, match="found 300 rows in the result, expected"):
        check(source, tmp_path / "result")


def test_the_free_memory_decides_on_the_mode(tmp_path):
    source = write_original(tmp_path / "source")
    weights = ReferenceWeights(as_parts(source))
    both = 2 * 4 * sum(weights.load(key).numel() for key in weights)
    assert choose_mode(weights, 2 * both) == "whole"
    assert choose_mode(weights, 2 * both - 1) == "blocks"
    folder = write_hyperllava(tmp_path / "result", source.expected)
    assert check(source, folder, mode=None, free_memory=2 * both - 1).mode == "blocks"
    assert check(source, folder, mode=None, free_memory=2 * both).mode == "whole"


def test_scratch_holds_the_outputs_and_is_left_empty(tmp_path):
    source = write_original(tmp_path / "source")
    folder = write_hyperllava(tmp_path / "result", source.expected)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = sorted(path for path in tmp_path.rglob("*"))
    assert check(source, folder, scratch=scratch).passed
    assert sorted(path for path in tmp_path.rglob("*")) == before
    with pytest.raises(FileNotFoundError):
        check(source, folder, scratch=tmp_path / "missing")


def test_fixed_inputs_are_text_an_image_and_text():
    config = LlavaConfig(**llava_fields())
    image, text = build_rows(config, VOCABULARY, {IMAGE, 330, 0})
    ids = image.input_ids[0].tolist()
    assert [token < 0 for token in ids] == [False] * 8 + [True] * 16 + [False] * 24
    assert not set(ids) & {IMAGE, 330, 0}
    assert max(ids) < VOCABULARY
    assert image.pixel_values.shape == (1, 3, 28, 28)
    assert 1.9 < image.pixel_values.abs().max() <= 2
    assert text.pixel_values is None
    assert (text.input_ids >= 0).all()
    again = build_rows(config, VOCABULARY, {IMAGE, 330, 0})[0]
    assert torch.equal(again.input_ids, image.input_ids)
    assert torch.equal(again.pixel_values, image.pixel_values)


def test_a_large_image_is_scored_at_some_positions():
    fields = llava_fields()
    fields["vision_config"].update(image_size=336, patch_size=14)
    row = build_rows(LlavaConfig(**fields), VOCABULARY, set())[0]
    assert row.input_ids.shape == (1, 8 + 576 + 24)
    assert len(row.scored) == 8 + 32 + 24


def test_differences_are_measured_with_their_place():
    nan, inf = float("nan"), float("inf")
    expected = torch.tensor([[1.0, -8.0], [nan, inf]])
    assert measure_difference(expected, expected) == (0, (0, 0), 8)
    found = torch.tensor([[1.0, -8.5], [nan, inf]])
    assert measure_difference(found, expected) == (0.5, (0, 1), 8)
    found = torch.tensor([[1.0, -8.5], [2.0, inf]])
    assert measure_difference(found, expected)[:2] == (inf, (1, 0))


def test_a_model_built_without_memory_computes_like_a_real_one(tmp_path):
    source = write_own(tmp_path / "source")
    weights = ReferenceWeights(as_parts(source), with_experts=True)
    config = HyperLlavaConfig.from_pretrained(source.path)
    model = build_on_meta(HyperLlavaForConditionalGeneration, config)
    assert all(parameter.is_meta for parameter in model.parameters())
    real = HyperLlavaForConditionalGeneration.from_pretrained(source.path)
    buffers = dict(real.named_buffers())
    assert len(buffers) >= 2
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    load_all(model, lambda key: weights.load(key, torch.float32))
    for name, parameter in real.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_names_in_memory_are_brought_to_the_frozen_set():
    layer = "encoder.layers.1.mlp.fc1.weight"
    assert get_canonical_name(f"model.vision_tower.{layer}") == f"{TOWER}.{layer}"
    assert get_canonical_name(f"{TOWER}.{layer}") == f"{TOWER}.{layer}"
    assert get_canonical_name(TOWER) == TOWER
    assert get_canonical_name("lm_head.weight") == "lm_head.weight"


def test_block_mode_takes_less_than_two_blocks(tmp_path):
    command = [sys.executable, "-m", "tests.conversion.verification_memory_job", tmp_path]
    # The C library maps and returns blocks of the size of real models' matrices one by one; those
    # of the test's would first be collected in its heap.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    output = subprocess.check_output(command, text=True, cwd=Path(__file__).parents[2], env=env)
    measured = json.loads(output.splitlines()[-1])
    assert measured["peak"] <= 2 * measured["block"]
    assert measured["peak"] < measured["model"] / 7
