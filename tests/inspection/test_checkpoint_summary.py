"""The summary of a checkpoint, against the model that it describes."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperllava_hf.inspection.checkpoint_summary import (
    count_parameters,
    format_blocks,
    summarize_checkpoint,
)
from hyperllava_hf.inspection.tensor_headers import TensorHeader, load_tensor_headers
from hyperllava_hf.modeling import HyperLlavaForConditionalGeneration
from tests.tiny_checkpoint import save_tiny_checkpoint


def test_counts_are_those_of_the_loaded_model(tiny_checkpoint: Path) -> None:
    model = HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    summary = summarize_checkpoint(str(tiny_checkpoint))
    assert summary.num_parameters == model.num_parameters()
    experts = [p.numel() for name, p in model.named_parameters() if "expert." in name]
    assert summary.num_expert_parameters == sum(experts)
    tower = [p.numel() for p in model.model.vision_tower.parameters()]
    assert summary.parameters["vision tower"] == sum(tower)


def test_weights_are_not_loaded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    assert summarize_checkpoint(str(tiny_checkpoint)).num_parameters > 0


def test_every_part_is_counted_once() -> None:
    keys = {
        "model.multi_modal_projector.visual_expert.first.bias_up": (2, 3),
        "model.multi_modal_projector.linear_1.weight": (5, 7),
        "model.language_model.layers.1.language_expert.bias_up": (11,),
        "model.language_model.norm.weight": (13,),
        "model.vision_tower.vision_model.post_layernorm.weight": (17,),
        "lm_head.weight": (1, 19),
    }
    headers = {key: TensorHeader(shape, "F32") for key, shape in keys.items()}
    assert count_parameters(headers) == {
        "visual expert": 6,
        "language experts": 11,
        "vision tower": 17,
        "projector": 35,
        "language model": 32,
    }


@pytest.mark.parametrize(
    ("blocks", "text"),
    [([], "none"), ([3], "3"), ([0, 1, 2], "0-2"), ([2, 4, 5, 6, 9], "2, 4-6, 9")],
)
def test_blocks_are_written_as_ranges(blocks: list[int], text: str) -> None:
    assert format_blocks(blocks) == text


def test_missing_experts_are_noted(tmp_path: Path) -> None:
    weights = save_tiny_checkpoint(tmp_path) / "model.safetensors"
    kept = {key: t for key, t in load_file(weights).items() if "language_expert." not in key}
    save_file(kept, weights, metadata={"format": "pt"})
    notes = summarize_checkpoint(str(tmp_path)).notes
    assert notes == ["The weights hold no language experts; loading starts them as the identity."]


def test_sharded_weights_are_read_through_their_index(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    headers = load_tensor_headers(str(tmp_path))
    assert headers == {"a": TensorHeader((2, 3), "F32"), "b": TensorHeader((5,), "BF16")}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"found no file .*model-2.safetensors, which .*index"):
        load_tensor_headers(str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        "{{{",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": "."}}',
    ],
)
def test_a_garbage_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        load_tensor_headers(str(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found neither model.safetensors nor"):
        load_tensor_headers(str(tmp_path))


@pytest.mark.parametrize("kept_bytes", [0, 5, 60, -1])
def test_truncated_weights_are_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3)}, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file"):
        load_tensor_headers(str(tmp_path))


def test_headers_of_a_repository_are_fetched_without_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = {"a": SimpleNamespace(shape=[2, 3], dtype="F16")}
    metadata = SimpleNamespace(files_metadata={"x": SimpleNamespace(tensors=tensors)})
    asked: list[tuple[str, str | None]] = []

    def fetch(repository: str, revision: str | None) -> SimpleNamespace:
        asked.append((repository, revision))
        return metadata

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fetch)
    headers = load_tensor_headers("user/name", "v1")
    assert headers == {"a": TensorHeader((2, 3), "F16")}
    assert asked == [("user/name", "v1")]


def test_headers_of_a_cached_repository_are_read_offline(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {("user/name", "v1"): str(tiny_checkpoint)}

    def find(repository: str, revision: str | None) -> str:
        return cached[repository, revision]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", find)
    assert load_tensor_headers("user/name", "v1") == load_tensor_headers(str(tiny_checkpoint))


@pytest.mark.parametrize("value", [{"hidden_size": "wide"}, [], "llama"])
def test_a_config_of_wrong_types_is_one_error(value: object, tmp_path: Path) -> None:
    path = save_tiny_checkpoint(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] = {**config["text_config"], **value} if value.__class__ is dict else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"text_config|hidden_size|wrong type"):
        summarize_checkpoint(str(tmp_path))
