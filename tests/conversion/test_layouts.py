"""Every layout becomes a HyperLLaVA that computes what the known LLaVA computes, bit for bit."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hyperllava_hf.conversion import convert
from tests.conversion import adapter_writers, damage, fork_writers, layout_writers, zero_writers
from tests.conversion.command_line import run_child, spell
from tests.conversion.results import (
    assert_same_logits,
    assert_same_tensors,
    build_expected,
    hash_others,
    hash_tree,
    list_names,
    load_models,
    read_base,
    read_experts,
)
from tests.conversion.tiny_llava import EMBEDDINGS, IMAGE, PAD, build_prompts, draw_state
from tests.conversion.tokenizer_files import (
    SENTENCES,
    build_fast_tokenizer,
    write_fast,
    write_sentencepiece,
)
from tests.conversion.weight_files import read_tensors

original, lora = layout_writers.write_original, adapter_writers.write_lora
own, fork, hf = layout_writers.write_own, fork_writers.write_fork, layout_writers.write_llava_hf
LAYOUTS = {
    "llava-bin": (original, {"num_shards": 1}),
    "llava-bin-shards": (original, {"num_shards": 3, "inv_freq": True}),
    "llava-safetensors": (original, {"kind": "safetensors", "num_shards": 1}),
    "llava-safetensors-shards": (original, {"kind": "safetensors", "num_shards": 3}),
    "llava_llama": (original, {"model_type": "llava_llama", "tower": "whole"}),
    "llava-tower-option": (original, {"tower": "option"}),
    "llava-tower-inside": (original, {"tower": "inside"}),
    "llava-tower-inside-safetensors": (original, {"tower": "inside", "kind": "safetensors"}),
    "llava-1.6": (original, {"tower": "inside", "v16": True}),
    "llava-fast-tokenizer": (original, {"tokenizer": write_fast}),
    "llava-float16": (original, {"dtype": torch.float16}),
    "llava-bfloat16": (original, {"dtype": torch.bfloat16, "kind": "safetensors"}),
    "llava-hf-old": (hf, {"names": "old"}),
    "llava-hf-old-one-file": (hf, {"names": "old", "num_shards": 1}),
    "llava-hf-old-bin": (hf, {"names": "old", "kind": "bin"}),
    "llava-hf-current": (hf, {"names": "current"}),
    "llava-hf-current-5": (hf, {"names": "current-5"}),
    "projector": (layout_writers.write_projector, {}),
    "projector-of-checkpoint": (layout_writers.write_projector, {"where": "checkpoint"}),
    "lora-bin": (lora, {}),
    "lora-safetensors": (lora, {"kind": "safetensors"}),
    "lora-rslora": (lora, {"variant": "rslora"}),
    "lora-patterns": (lora, {"variant": "patterns"}),
    "lora-some-layers": (lora, {"variant": "some-layers", "kind": "safetensors"}),
    "lora-float16": (lora, {"dtype": torch.float16}),
    "delta": (layout_writers.write_delta, {}),
    "fork-default": (fork, {}),
    "fork-rules": (fork, {"names": "other", "kind": "safetensors"}),
    "fork-tower-inside": (fork, {"names": "other", "tower": "inside"}),
    "hyperllava": (own, {}),
    "hyperllava-float16": (own, {"dtype": torch.float16}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_result_computes_what_the_known_llava_computes(name, tmp_path):
    write, options = LAYOUTS[name]
    check(write(tmp_path / "source", **options), tmp_path)


@pytest.mark.parametrize(("tokens", "rows"), [(318, 318), (331, 352), (331, 384)])
def test_vocabulary_grows_to_the_next_multiple_of_64(tokens, rows, tmp_path):
    """318 tokens and the two new ones fill 320 rows; rows that are there already are kept."""
    source = original(
        tmp_path / "source",
        state=draw_state(vocab_size=rows),
        tokenizer=functools.partial(write_sentencepiece, num_pieces=tokens),
        vocab_size=rows,
    )
    convert(source.path, tmp_path / "result")
    base = read_base(tmp_path / "result")
    needed = -(-max(tokens + 2, rows) // 64) * 64
    assert len(base["lm_head.weight"]) == needed
    held = draw_state(vocab_size=rows)
    for name in EMBEDDINGS:
        assert torch.equal(base[name][:rows], held[name])
        mean = held[name].double().mean(0).float()
        assert torch.equal(base[name][rows:], mean.expand(needed - rows, -1))


def test_views_of_shared_storage_in_a_bin_file_are_read_as_they_are(tmp_path):
    source = original(tmp_path / "source", num_shards=1)
    file = source.path / "pytorch_model.bin"
    tensors = read_tensors(file)
    names = sorted(name for name in tensors if "layers.0" in name)
    flat = torch.cat([tensors[name].flatten() for name in names])
    start = 0
    for name in names:
        stop = start + tensors[name].numel()
        tensors[name] = flat[start:stop].view(tensors[name].shape)
        start = stop
    for name in ("model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
        tensors[name] = tensors[name].T.contiguous().T
    torch.save(tensors, file)
    check(source, tmp_path)


def test_files_may_be_links_as_in_the_hubs_cache(tmp_path):
    source = hf(tmp_path / "source")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(source.path.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../blobs/{number}")
    check(source, tmp_path)
    assert not any(path.is_symlink() for path in (tmp_path / "result").iterdir())


def test_safetensors_are_taken_where_pickles_stand_beside_them(tmp_path):
    source = original(tmp_path / "source", kind="safetensors")
    trace = tmp_path / "trace"
    damage.put_code_into(source.path / "pytorch_model.bin", trace)
    check(source, tmp_path)
    assert not trace.exists()


def test_manifest_names_every_file_with_its_sha256(tmp_path):
    source = lora(tmp_path / "source")
    convert(source.path, tmp_path / "result", **source.options)
    manifest = json.loads((tmp_path / "result" / "conversion.json").read_text())
    hashes = hash_tree(tmp_path)
    inputs = {record["name"]: record["sha256"] for record in manifest["inputs"]}
    outputs = {record["name"]: record["sha256"] for record in manifest["outputs"]}
    assert set(outputs) | {"conversion.json"} == set(list_names(tmp_path / "result"))
    assert all(hashes[f"result/{name}"] == value for name, value in outputs.items())
    read = {value: name for name, value in hashes.items() if not name.startswith("result")}
    names = {read[value] for value in inputs.values()}
    assert {
        "source/adapter_model.bin",
        "source/non_lora_trainables.bin",
        "source-llm/model-00001-of-00002.safetensors",
        "source-llm/model-00002-of-00002.safetensors",
        "source-clip/model.safetensors",
    } <= names
    assert manifest["layout"] == "lora"
    assert manifest["base_vocabulary_size"] == 331


def test_conversion_repeats_bit_for_bit(tmp_path):
    source = original(tmp_path / "source")
    for name in ("first/result", "second/result"):
        convert(source.path, tmp_path / name, dtype="bfloat16")
    first, second = (hash_tree(tmp_path / name / "result") for name in ("first", "second"))
    # The manifest says how long the verification took.
    del first["conversion.json"], second["conversion.json"]
    assert first == second


@pytest.mark.parametrize("name", ["llava-bin", "lora-patterns", "hyperllava"])
def test_command_says_nothing_of_the_libraries_below(name, tmp_path, streams):
    write, options = LAYOUTS[name]
    source = write(tmp_path / "source", **options)
    words = spell(source.path, tmp_path / "result", **source.options)
    code, out, err = run_child("measure", streams, *words)
    assert code == 0, err
    assert "Warning" not in out + err
    assert "WARNING" not in out + err


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_folder_becomes_the_known_llava(stage, tmp_path, ranks_folder):
    check(zero_writers.write_zero(tmp_path / "source", ranks_folder, stage), tmp_path)


def check(source, tmp_path):
    before = hash_tree(tmp_path)
    report = convert(source.path, tmp_path / "result", **source.options)
    assert report.layout == source.layout
    assert report.verification.passed
    assert hash_others(tmp_path, "result") == before
    assert_same_tensors(read_base(tmp_path / "result"), source.expected)
    if source.experts:
        assert_same_tensors(read_experts(tmp_path / "result"), source.experts)
    expected = build_expected(source)
    for model in load_models(tmp_path / "result"):
        assert_same_logits(model, expected, source.image)


@pytest.mark.parametrize("name", ["llava-bin", "llava-fast-tokenizer", "llava-hf-old", "lora-bin"])
def test_processor_of_the_result_has_the_ids_of_the_source(name, tmp_path):
    write, options = LAYOUTS[name]
    source = write(tmp_path / "source", **options)
    convert(source.path, tmp_path / "result", **source.options, verify=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "result", trust_remote_code=True)
    known = build_fast_tokenizer()
    for text in SENTENCES:
        assert processor.tokenizer(text)["input_ids"] == known.encode(text).ids
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [IMAGE, PAD]
    picture = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Which digit?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert (inputs["input_ids"] == IMAGE).sum() == 16
    (model, *_) = load_models(tmp_path / "result")
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= inputs["input_ids"].shape[1] + 3
    assert model.generation_config.pad_token_id == PAD
    assert model.generation_config.eos_token_id == 2


def test_unmerged_lora_differs_by_rounding_alone(tmp_path):
    source = lora(tmp_path / "source")
    convert(source.path, tmp_path / "result", **source.options, verify=False)
    (model, *_) = load_models(tmp_path / "result")
    adapted = adapter_writers.build_adapter()
    inputs = build_prompts()[1]
    with torch.no_grad():
        ours = model(**inputs).logits[..., : draw_state()["lm_head.weight"].shape[0]].double()
        single = adapted(**inputs).logits.double()
        exact = adapted.double()(**inputs).logits
    # Both are the same sums rounded in other places: neither is much further from the exact one.
    error = (single - exact).abs().max()
    assert (ours - exact).abs().max() <= 4 * error


def test_lora_without_its_adapter_is_another_model(tmp_path):
    merged = lora(tmp_path / "source").expected
    changed = [n for n, t in draw_state().items() if not torch.equal(t, merged[n][: len(t)])]
    assert len(changed) == 3 * 7


@pytest.mark.parametrize("experts", ["init", "none", None])
def test_fresh_experts_change_nothing(experts, tmp_path):
    source = original(tmp_path / "source")
    convert(source.path, tmp_path / "result", experts=experts)
    assert bool(read_experts(tmp_path / "result")) == (experts != "none")
    for model in load_models(tmp_path / "result"):
        assert_same_logits(model, build_expected(source), IMAGE)


def test_fresh_experts_are_placed_as_asked_and_repeat_by_seed(tmp_path):
    source = original(tmp_path / "source")
    fields = {"visual_expert": "second", "language_expert_layers": [0], "expert_hidden_dim": 2}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        convert(source.path, tmp_path / name, expert_fields=fields, seed=seed, verify=False)
    a, b, c = (read_experts(tmp_path / name) for name in "abc")
    assert_same_tensors(a, b)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert any("layers.0.language_expert" in name for name in a)
    assert not any("layers.1." in name for name in a)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert {name: config[name] for name in fields} == fields


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_cast_once(dtype, tmp_path):
    source = original(tmp_path / "source")
    convert(source.path, tmp_path / "result", dtype=dtype)
    wanted = getattr(torch, dtype)
    for name, tensor in read_base(tmp_path / "result").items():
        assert tensor.dtype == wanted
        held = draw_state()[name]
        assert torch.equal(tensor[: len(held)], held.to(wanted)), name


def test_shards_are_no_larger_than_asked(tmp_path):
    source = original(tmp_path / "source")
    convert(source.path, tmp_path / "result", max_shard_size="50KB", experts="none", verify=False)
    sizes = [path.stat().st_size for path in (tmp_path / "result").glob("model-*.safetensors")]
    assert len(sizes) > 3
    assert max(sizes) < 60_000
    assert_same_tensors(read_base(tmp_path / "result"), source.expected)


def test_dry_run_plans_and_writes_nothing(tmp_path):
    source = lora(tmp_path / "source")
    before = hash_tree(tmp_path)
    report = convert(source.path, tmp_path / "result", **source.options, dry_run=True)
    assert hash_tree(tmp_path) == before
    planned = {tensor.target: tensor for tensor in report.planned}
    assert source.expected.keys() <= planned.keys()
    for name, tensor in source.expected.items():
        assert tuple(planned[name].shape) == tuple(tensor.shape)
        assert planned[name].num_bytes == tensor.numel() * 4
    assert not (tmp_path / "result").exists()
