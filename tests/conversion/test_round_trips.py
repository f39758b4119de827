"""There and back again: every tensor byte for byte, and files that other tools read."""

import json

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from hyperllava_hf.conversion import attach_experts, convert, extract_experts
from tests.conversion.fork_writers import write_fork
from tests.conversion.layout_writers import (
    ORIGINAL_KEYS,
    rename,
    write_clip,
    write_llava_hf,
    write_original,
    write_own,
)
from tests.conversion.results import (
    assert_same_logits,
    assert_same_tensors,
    hash_tree,
    list_names,
    load_models,
    read_base,
    read_experts,
)
from tests.conversion.tiny_llava import (
    EMBEDDINGS,
    IMAGE,
    VOCABULARY,
    as_llava,
    draw_state,
    pad_vocabulary,
)
from tests.conversion.tokenizer_files import SENTENCES, build_fast_tokenizer
from tests.conversion.weight_files import read_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tower", ["outside", "inside"])
def test_original_llava_comes_back_byte_for_byte(tower, dtype, tmp_path):
    source = write_original(tmp_path / "source", tower=tower, dtype=dtype, inv_freq=True)
    convert(source.path, tmp_path / "there", verify=False)
    report = convert(tmp_path / "there", tmp_path / "back", to="llava")
    assert (report.layout, report.to) == ("hyperllava", "llava")
    state = {name: tensor.to(dtype) for name, tensor in draw_state().items()}
    assert_same_tensors(read_weights(tmp_path / "back"), rename(state, ORIGINAL_KEYS))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["vocab_size"] == 331
    assert config["mm_projector_type"] == "mlp2x_gelu"
    assert config["mm_vision_select_layer"] == -2
    # And it is a source again; no table knows the configuration of so small a tower.
    again = convert(
        tmp_path / "back", tmp_path / "again", vision_tower=tmp_path / "source-clip", verify=False
    )
    assert again.layout == "llava"
    assert_same_tensors(read_weights(tmp_path / "again"), read_weights(tmp_path / "there"))


def test_llava_hf_comes_back_byte_for_byte(tmp_path):
    source = write_llava_hf(tmp_path / "source")
    convert(source.path, tmp_path / "there", verify=False)
    convert(tmp_path / "there", tmp_path / "back", to="llava-hf")
    assert_same_tensors(read_weights(tmp_path / "back"), read_weights(source.path))


@pytest.mark.parametrize("names", ["current", "current-5"])
def test_newer_llava_hf_names_come_back_as_the_published_ones(names, tmp_path):
    source = write_llava_hf(tmp_path / "source", names)
    published = write_llava_hf(tmp_path / "published", "old")
    convert(source.path, tmp_path / "back", to="llava-hf")
    assert_same_tensors(read_weights(tmp_path / "back"), read_weights(published.path))


def load_llava(folder):
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("write", [write_original, write_llava_hf])
@pytest.mark.parametrize("direct", [True, False])
def test_transformers_reads_what_is_written_as_llava_hf(write, direct, tmp_path):
    source = write(tmp_path / "source")
    if direct:
        convert(source.path, tmp_path / "back", to="llava-hf")
    else:
        convert(source.path, tmp_path / "there", experts="none", verify=False)
        convert(tmp_path / "there", tmp_path / "back", to="llava-hf")
    assert not list((tmp_path / "back").glob("*.py"))
    model = load_llava(tmp_path / "back")
    assert_same_logits(model, as_llava(source.expected), IMAGE)
    processor = AutoProcessor.from_pretrained(tmp_path / "back")
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.config.image_token_index == IMAGE
    for text in SENTENCES:
        ids = processor.tokenizer(text)["input_ids"]
        assert ids == build_fast_tokenizer().encode(text).ids
    text = "USER: <image>\nWhich? ASSISTANT:"
    pixels = torch.zeros(3, 40, 30, dtype=torch.uint8)
    inputs = processor(images=pixels, text=text, return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE).sum() == 16
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_llava_hf_becomes_the_original_layout_and_computes_the_same(tmp_path):
    source = write_llava_hf(tmp_path / "source")
    clip = write_clip(tmp_path / "clip", draw_state(seed=5))
    convert(source.path, tmp_path / "original", to="llava")
    report = convert(tmp_path / "original", tmp_path / "again", vision_tower=clip)
    assert report.layout == "llava"
    # The rows behind the original vocabulary are new ones, as for any original.
    expected = {
        name: tensor[:VOCABULARY] if name in EMBEDDINGS else tensor
        for name, tensor in source.expected.items()
    }
    assert_same_tensors(read_base(tmp_path / "again"), pad_vocabulary(expected))
    for model in load_models(tmp_path / "again"):
        assert_same_logits(model, as_llava(pad_vocabulary(expected)), IMAGE)


@pytest.mark.parametrize("to", ["llava", "llava-hf"])
@pytest.mark.parametrize(("write", "options"), [(write_own, {}), (write_fork, {"names": "other"})])
def test_trained_experts_are_not_dropped_unasked(write, options, to, tmp_path):
    source = write(tmp_path / "source", **options)
    before = hash_tree(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)trained expert.*drop_experts"):
        convert(source.path, tmp_path / "back", to=to, **source.options)
    assert hash_tree(tmp_path) == before


@pytest.mark.parametrize("experts", ["init", "none"])
def test_trained_experts_are_not_replaced_unasked(experts, tmp_path):
    source = write_own(tmp_path / "source")
    with pytest.raises(ValueError, match=r"(?s)trained expert.*drop_experts"):
        convert(source.path, tmp_path / "result", experts=experts)
    convert(source.path, tmp_path / "result", experts=experts, drop_experts=True)
    assert_same_tensors(read_base(tmp_path / "result"), source.expected)
    for model in load_models(tmp_path / "result"):
        assert_same_logits(model, as_llava(source.expected), IMAGE)


def test_trained_experts_are_dropped_when_asked(tmp_path):
    source = write_own(tmp_path / "source")
    convert(source.path, tmp_path / "back", to="llava-hf", drop_experts=True)
    assert_same_logits(load_llava(tmp_path / "back"), as_llava(source.expected), IMAGE)


def test_own_folder_is_rewritten_byte_for_byte(tmp_path):
    source = write_own(tmp_path / "source")
    convert(source.path, tmp_path / "there", max_shard_size="40KB", verify=False)
    convert(tmp_path / "there", tmp_path / "back")
    assert list_names(tmp_path / "there") != list_names(tmp_path / "back")
    assert_same_tensors(read_weights(tmp_path / "back"), read_weights(source.path))


def test_experts_leave_and_return(tmp_path):
    source = write_own(tmp_path / "source")
    extract_experts(source.path, tmp_path / "experts.safetensors")
    convert(source.path, tmp_path / "base", experts="none", drop_experts=True, verify=False)
    attach_experts(tmp_path / "base", tmp_path / "experts.safetensors", tmp_path / "whole")
    assert_same_tensors(read_weights(tmp_path / "whole"), read_weights(source.path))
    assert_same_tensors(read_experts(tmp_path / "whole"), source.experts)


def test_experts_refuse_another_base(tmp_path):
    source = write_own(tmp_path / "source")
    extract_experts(source.path, tmp_path / "experts.safetensors")
    other = write_llava_hf(tmp_path / "other", state=draw_state(seed=9, vocab_size=384))
    with pytest.raises(ValueError, match=r"(?s)belongs to the base.*expected"):
        attach_experts(other.path, tmp_path / "experts.safetensors", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
