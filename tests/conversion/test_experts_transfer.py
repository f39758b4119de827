"""Experts leave a model as a file and come back on their base, and on no other."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyperllava_hf import HyperLlavaForConditionalGeneration
from hyperllava_hf.cli import main
from hyperllava_hf.conversion import attach_experts, convert, extract_experts
from tests.conversion.layout_writers import write_llava_hf, write_original, write_own
from tests.conversion.results import assert_same_tensors, list_names, read_base, read_experts
from tests.conversion.tiny_llava import compute_logits


def load(folder):
    return HyperLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def own(tmp_path):
    return write_own(tmp_path / "own")


def test_experts_come_back_on_their_base_stripped_by_another_tool(own, tmp_path):
    file = tmp_path / "experts.safetensors"
    report = extract_experts(own.path, file)
    convert(own.path, tmp_path / "bare", to="llava-hf", drop_experts=True)
    attach_experts(tmp_path / "bare", file, tmp_path / "back")
    assert_same_tensors(read_base(tmp_path / "back"), read_base(own.path))
    assert_same_tensors(read_experts(tmp_path / "back"), own.experts)
    assert report.num_tensors == len(own.experts)
    for found, expected in zip(
        compute_logits(load(tmp_path / "back"), own.image),
        compute_logits(load(own.path), own.image),
        strict=True,
    ):
        assert torch.equal(found, expected)
    stated = json.loads((own.path / "config.json").read_text())
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    for name in ("visual_expert", "language_expert_layers", "expert_hidden_dim"):
        assert written[name] == stated[name]


def test_the_file_holds_the_experts_alone_and_names_their_base(own, tmp_path):
    file = tmp_path / "experts.safetensors"
    report = extract_experts(own.path, file)
    with safe_open(file, framework="pt") as content:
        assert sorted(content.keys()) == sorted(own.experts)
        assert content.metadata()["hyperllava_base_sha256"] == report.base_identity
    largest = sum(tensor.numel() * tensor.element_size() for tensor in own.experts.values())
    assert file.stat().st_size < largest + 16_384


def test_identity_of_a_base_is_that_of_its_values_not_of_its_files(own, tmp_path):
    first = extract_experts(own.path, tmp_path / "first.safetensors")
    convert(own.path, tmp_path / "sharded", max_shard_size=60_000)
    second = extract_experts(tmp_path / "sharded", tmp_path / "second.safetensors")
    assert first.base_identity == second.base_identity
    assert first.record.sha256 == second.record.sha256


@pytest.mark.parametrize("change", ["one value", "dtype"])
def test_another_base_is_refused_and_nothing_written(change, own, tmp_path, capsys):
    file, other = tmp_path / "experts.safetensors", tmp_path / "other"
    extract_experts(own.path, file)
    model = load(own.path)
    if change == "one value":
        with torch.no_grad():
            model.lm_head.weight[3, 4] += 1e-3
    else:
        model = model.to(torch.bfloat16)
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((own.path / name).read_bytes())
    capsys.readouterr()
    arguments = ["experts", "attach", str(other), str(file), str(tmp_path / "out")]
    assert main([*arguments, "--drop-experts"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "belongs to the base" in line
    assert "out" not in list_names(tmp_path)


def test_trained_experts_of_the_base_are_not_replaced_unasked(own, tmp_path):
    file = tmp_path / "experts.safetensors"
    extract_experts(own.path, file)
    with pytest.raises(ValueError, match="32 trained expert tensors"):
        attach_experts(own.path, file, tmp_path / "out")
    attach_experts(own.path, file, tmp_path / "out", drop_experts=True)
    assert_same_tensors(read_experts(tmp_path / "out"), own.experts)


def test_a_model_without_experts_has_none_to_extract(tmp_path):
    source = write_llava_hf(tmp_path / "hf")
    with pytest.raises(ValueError, match="expected a HyperLLaVA"):
        extract_experts(source.path, tmp_path / "experts.safetensors")
    convert(source.path, tmp_path / "none", experts="none", verify=False)
    with pytest.raises(ValueError, match="no experts to extract"):
        extract_experts(tmp_path / "none", tmp_path / "experts.safetensors")
    assert "experts.safetensors" not in list_names(tmp_path)


def test_a_file_that_is_no_file_of_experts_is_refused(own, tmp_path):
    source = write_original(tmp_path / "source", kind="safetensors", num_shards=1)
    for wrong in (source.path / "model.safetensors", source.path / "config.json"):
        with pytest.raises(ValueError, match="no file of experts"):
            convert(source.path, tmp_path / "out", experts=wrong, **source.options)
    with pytest.raises(ValueError, match="exists"):
        extract_experts(own.path, source.path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: [], r"found '\[\]' in its metadata"),
        (lambda fields: {}, "found the fields  in its metadata"),
        (lambda fields: {**fields, "expert_dim": 3}, "found the fields .*expert_dim"),
        (lambda fields: {**fields, "language_guidance_scope": "row"}, "'row'"),
        (lambda fields: {**fields, "expert_hidden_dim": "wide"}, "wide"),
    ],
)
def test_a_file_of_altered_fields_is_refused_and_nothing_written(change, message, own, tmp_path):
    file = tmp_path / "experts.safetensors"
    extract_experts(own.path, file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
        tensors = load_file(file)
    fields = json.loads(metadata["hyperllava_expert_fields"])
    metadata["hyperllava_expert_fields"] = json.dumps(change(fields))
    save_file(tensors, file, metadata)
    convert(own.path, tmp_path / "bare", to="llava-hf", drop_experts=True)
    with pytest.raises(ValueError, match=message):
        attach_experts(tmp_path / "bare", file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_extracted_file_is_the_same_each_time_and_replaced_only_when_asked(own, tmp_path):
    file = tmp_path / "experts.safetensors"
    first = extract_experts(own.path, file).record.sha256
    with pytest.raises(ValueError, match="exists"):
        extract_experts(own.path, file)
    assert extract_experts(own.path, file, overwrite=True).record.sha256 == first


@pytest.mark.parametrize("seed", [0, 1])
def test_fresh_experts_depend_on_the_seed_alone(seed, tmp_path):
    source = write_original(tmp_path / "source")
    torch.manual_seed(99)
    convert(source.path, tmp_path / "first", seed=seed, verify=False, **source.options)
    drawn = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(drawn, torch.rand(1))
    convert(source.path, tmp_path / "second", seed=seed, verify=False, **source.options)
    assert_same_tensors(read_experts(tmp_path / "first"), read_experts(tmp_path / "second"))
    name = "model.language_model.language_expert.heads.0.weight_down"
    other = convert(source.path, tmp_path / "third", seed=seed + 1, verify=False, **source.options)
    assert other.layout == "llava"
    third = read_experts(tmp_path / "third")
    assert not torch.equal(read_experts(tmp_path / "first")[name], third[name])


def test_scope_of_kept_experts_may_change_without_touching_their_weights(own, tmp_path):
    convert(own.path, tmp_path / "out", expert_fields={"language_guidance_scope": "prompt"})
    assert_same_tensors(read_experts(tmp_path / "out"), own.experts)
    assert json.loads((tmp_path / "out" / "config.json").read_text())[
        "language_guidance_scope"
    ] == ("prompt")


def test_experts_are_never_written_over_the_weights_that_they_come_from(own):
    weights = own.path / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=r"holds the weights that are read; expected another file"):
        extract_experts(own.path, weights, overwrite=True)
    assert weights.read_bytes() == before
