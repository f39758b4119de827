"""What a run needs, what it says before it begins, and what it leaves."""

import dataclasses
import importlib.util
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaForConditionalGeneration
from hyperllava_hf.conversion import extract_experts
from hyperllava_hf.processing.chat_templates_hyperllava import CHAT_TEMPLATES
from hyperllava_hf.training import runs
from hyperllava_hf.training.scene_files import write_scene_files
from hyperllava_hf.training.stages import get_group, get_trained_groups
from hyperllava_hf.training.trainer import EXPERTS_FILE
from tests.training.tiny_runs import build_tiny_settings, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def get_moved_groups(folder, start):
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == start.keys()
    return {get_group(n) for n, value in weights.items() if not torch.equal(value, start[n])}


@pytest.mark.parametrize(
    ("stage", "language_model"), [("align", "frozen"), ("instruct", "frozen"), ("instruct", "full")]
)
def test_run_leaves_a_model_in_which_the_stage_alone_has_moved(
    tiny_checkpoint, rows, tmp_path, stage, language_model
):
    settings = build_tiny_settings(
        tiny_checkpoint,
        rows,
        stage=stage,
        language_model=language_model,
        template="vicuna_v1",
        save_only="all" if language_model == "full" else "experts",
        max_steps=1,
    )
    report = runs.train(settings, tmp_path)
    start = load_file(tiny_checkpoint / "model.safetensors")
    trained = get_trained_groups(stage, language_model)
    assert get_moved_groups(report.model, start) == trained
    assert {c.group for c in report.counts if c.num_trained} == trained
    model = AutoModelForImageTextToText.from_pretrained(report.model, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(report.model, trust_remote_code=True)
    inputs = processor(text="q?", return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    assert (report.model / "modeling_hyperllava.py").is_file()
    if language_model == "frozen":
        kept = load_file(tmp_path / "checkpoint-1" / EXPERTS_FILE)
        assert {get_group(name) for name in kept} == trained
        assert not (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    extracted = extract_experts(report.model, tmp_path / "experts.safetensors")
    assert extracted.num_tensors == sum("expert." in name for name in start)


def test_lora_run_leaves_an_adapter_and_merged_the_same_model(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(
        tiny_checkpoint, rows, language_model="lora", lora_rank=2, merge=True, max_steps=2
    )
    report = runs.train(settings, tmp_path)
    base = HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = HyperLlavaForConditionalGeneration.from_pretrained(report.model).eval()
    ids = torch.arange(4, 40)[None]
    logits = adapted(input_ids=ids).logits
    torch.testing.assert_close(merged(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4)
    start = load_file(tiny_checkpoint / "model.safetensors")
    moved = get_moved_groups(report.model, start)
    assert moved == {"projector", "visual_expert", "language_expert", "language_model"}


def test_run_over_four_bits_leaves_the_unquantised_base_with_its_experts(
    tiny_checkpoint, rows, tmp_path
):
    settings = build_tiny_settings(
        tiny_checkpoint,
        rows,
        language_model="frozen",
        four_bit=True,
        dtype="bfloat16",
        save_only="experts",
        max_steps=2,
    )
    report = runs.train(settings, tmp_path)
    assert all(loss == loss and loss > 0 for _, loss in report.losses)
    start = load_file(tiny_checkpoint / "model.safetensors")
    counted = {count.group: count.num_parameters for count in report.counts}
    decoder = [v for n, v in start.items() if get_group(n) == "language_model"]
    assert counted["language_model"] == sum(value.numel() for value in decoder)
    rounded = {name: value.bfloat16() for name, value in start.items()}
    moved = get_moved_groups(report.model, rounded)
    assert moved == {"projector", "visual_expert", "language_expert"}


def test_run_from_a_llava_makes_experts_by_keyword(tiny_checkpoint, rows, tmp_path):
    source = HyperLlavaForConditionalGeneration.from_pretrained(
        tiny_checkpoint, visual_expert="none", language_expert_layers="none"
    )
    config = {k: v for k, v in source.config.to_dict().items() if "expert" not in k}
    config = {**config, "model_type": "llava", "architectures": None}
    config.pop("auto_map")
    llava = LlavaForConditionalGeneration.config_class.from_dict(config)
    folder = tmp_path / "llava"
    plain = LlavaForConditionalGeneration(llava)
    plain.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    settings = build_tiny_settings(
        folder,
        rows,
        max_steps=2,
        experts={"expert_input_dim": 3, "expert_hidden_dim": 2, "visual_expert": "both"},
    )
    report = runs.train(settings, tmp_path / "run")
    model = HyperLlavaForConditionalGeneration.from_pretrained(report.model)
    assert (model.config.expert_input_dim, model.config.visual_expert) == (3, "both")
    up = model.model.language_model.layers[1].language_expert.bias_up
    assert up.abs().max() > 0  # zero where it is fresh


def test_dry_run_counts_what_the_run_trains(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, language_model="lora", lora_rank=3)
    said = []
    plan = runs.plan_run(settings, said.append)
    report = runs.train(settings, tmp_path)
    assert plan.counts == report.counts
    assert (plan.num_steps, plan.num_rows) == (report.num_steps, report.num_rows) == (6, 11)
    assert any("4 rows a step = 1 device(s) x 2 rows x 2 accumulated, 6 steps" in s for s in said)


def test_record_tells_what_was_done(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, max_steps=2)
    report = runs.train(settings, tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["settings"] == json.loads(json.dumps(settings.to_dict()))
    assert record["losses"] == [list(pair) for pair in report.losses]
    assert len(record["losses"]) == record["num_steps"] == 2
    assert record["num_tokens"] > 100
    assert len(record["data_fingerprint"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert record["groups"][0]["group"] == "vision_tower"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no model is named"),
        ({"model": "nowhere"}, "found no folder nowhere; expected a folder or a Hub id"),
        ({"model": "run-9/model"}, "found no folder run-9/model here, so it was looked for on the"),
        ({"experts": {"expert_hidden_dim": 7}}, "experts.expert_hidden_dim: found 7, expected "),
        ({"data": ()}, "no data is named"),
        ({"template": "chatty"}, "chatty"),
        ({"global_batch_size": 3}, "set device_batch_size=1"),
    ],
)
def test_what_is_missing_is_named_before_training(
    tiny_checkpoint, rows, tmp_path, changes, message
):
    settings = build_tiny_settings(tiny_checkpoint, rows)
    settings = type(settings)(**{**vars(settings), **changes})
    with pytest.raises(ValueError, match=message):
        runs.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=message):
        runs.plan_run(settings, print)


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"report_to": ("wandb",)}, "wandb"),
        ({"report_to": ("tensorboard",)}, "tensorboard"),
        ({"language_model": "lora"}, "peft"),
        ({"language_model": "frozen", "four_bit": True}, "bitsandbytes"),
        ({"sharding": "zero3"}, "deepspeed"),
    ],
)
def test_missing_package_is_named_with_its_installation(
    tiny_checkpoint, rows, tmp_path, monkeypatch, changes, package
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    settings = build_tiny_settings(tiny_checkpoint, rows, **changes)
    with pytest.raises(ValueError, match=f"needs the package {package}.*pip install {package}"):
        runs.train(settings, tmp_path)


def test_scene_files_are_llava_data(tmp_path):
    captions, conversations = write_scene_files(tmp_path, 11, num_turns=2)
    first, second = (json.loads(path.read_text()) for path in (captions, conversations))
    assert len(first) == len(second) == 11
    assert all((tmp_path / row["image"]).is_file() for row in first)
    assert [len(row["conversations"]) for row in second[:3]] == [4, 4, 4]
    assert [i for i, row in enumerate(second) if "image" not in row] == [9]
    assert second[0]["conversations"][0]["value"].startswith("<image>\n")
    with pytest.raises(ValueError, match="holds scenes already"):
        write_scene_files(tmp_path, 1)


FOREIGN_TEMPLATE = "{% for m in messages %}USER: {{ m.content[0].text }}{% endfor %} ASSISTANT:"


@pytest.fixture
def llava_like(tiny_checkpoint, tmp_path):
    """A checkpoint with a conversation format and an image geometry of its own."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = FOREIGN_TEMPLATE
    processor.image_processor.do_pad = False
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("language_model", ["frozen", "lora"])
def test_a_model_is_left_with_the_template_and_the_images_that_it_was_trained_with(
    llava_like, rows, tmp_path, language_model
):
    settings = build_tiny_settings(
        llava_like, rows, max_steps=1, pad_images=True, language_model=language_model, lora_rank=2
    )
    report = runs.train(settings, tmp_path / "run")
    left = AutoProcessor.from_pretrained(report.model)
    assert left.chat_template == CHAT_TEMPLATES["vicuna_v1"]
    assert left.image_processor.do_pad


def test_captions_leave_the_checkpoints_own_template(llava_like, rows, tmp_path):
    settings = build_tiny_settings(
        llava_like, rows, stage="align", language_model="frozen", max_steps=1, pad_images=True
    )
    settings = dataclasses.replace(settings, template="vicuna_v1")
    left = AutoProcessor.from_pretrained(runs.train(settings, tmp_path / "run").model)
    assert (left.chat_template, left.image_processor.do_pad) == (FOREIGN_TEMPLATE, False)


@pytest.mark.parametrize(
    ("changes", "is_idle"),
    [
        ({"max_steps": 1, "warmup_ratio": 0.03}, True),
        ({"num_epochs": 1.0, "global_batch_size": 128, "warmup_ratio": 0.03}, True),
        ({"max_steps": 2, "warmup_ratio": 0.03}, False),
        ({"max_steps": 1, "warmup_ratio": 0.0}, False),
        ({"max_steps": 1, "warmup_ratio": 0.03, "schedule": "constant"}, False),
    ],
)
def test_a_run_that_ends_before_its_learning_rate_begins_is_said(
    tiny_checkpoint, rows, changes, is_idle
):
    said = []
    runs.plan_run(build_tiny_settings(tiny_checkpoint, rows, **changes), said.append)
    assert any("nothing will be trained" in line for line in said) == is_idle
