"""config.json of a newer version, or edited to contradict the weights: one clear error each."""

import json

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from tests.modeling.tiny_models import NUM_BLOCKS, ROWS, batch, differ, logits, tiny_model

NEWER = {
    "expert_dropout": 0.1,
    "language_guidance_window": 3,
    "visual_expert_pooling": "max",
    "hyperllava_format": 2,
}
CONTRADICTIONS = {
    "fewer experts": ({"language_expert_layers": [3]}, "expert weights that its config.json"),
    "no experts": ({"language_expert_layers": "none"}, "expert weights that its config.json"),
    "other source": ({"expert_source": "static"}, "expert weights that its config.json"),
    "fewer blocks": ({"num_hidden_layers": 3}, "no place for"),
    "more blocks": ({"num_hidden_layers": 5}, "base weights are missing"),
    "narrower code": ({"expert_input_dim": 4}, r"another shape.*language_expert.*[\[(]4,"),
    "other width": ({"hidden_size": 32}, r"another shape.*lm_head.*32"),
    "other vocabulary": ({"vocab_size": 80}, r"another shape.*lm_head.*80, 16"),
    "no projector bias": (
        {"multimodal_projector_bias": False},
        r"2 base weights that its config\.json.*linear_1\.bias",
    ),
    "smaller tower": (
        {"vision_config": {"num_hidden_layers": 2}},
        r"16 base weights that its config\.json.*vision_tower",
    ),
    "expert elsewhere": ({"visual_expert": "second"}, r"another shape.*visual_expert"),
}


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def edit(folder, fields):
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    for name, value in fields.items():
        place = stored["text_config"] if name in stored["text_config"] else stored
        place[name] = {**place[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("name", NEWER)
def test_an_unknown_expert_field_is_refused_by_name(folder, name):
    edit(folder, {name: NEWER[name]})
    with pytest.raises(ValueError, match=f"{name}: found a field of a newer version.*update"):
        AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(ValueError, match=name):
        AutoConfig.from_pretrained(folder)


def test_a_newer_value_of_a_known_field_is_refused_with_the_known_ones(folder):
    edit(folder, {"language_guidance_scope": "segment"})
    with pytest.raises(ValueError, match="found 'segment', expected one of token, prompt"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_fields_that_are_not_the_experts_are_kept_as_transformers_keeps_them(folder):
    edit(folder, {"someones_note": "kept"})
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.config.someones_note == "kept"


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize(
    "loader", [AutoModelForImageTextToText, HyperLlavaForConditionalGeneration]
)
def test_a_config_that_contradicts_the_weights_is_one_error(folder, case, loader):
    fields, message = CONTRADICTIONS[case]
    before = (folder / "model.safetensors").read_bytes()
    edit(folder, fields)
    with pytest.raises(ValueError, match=message):
        loader.from_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_fewer_blocks_without_experts_are_refused_too(tmp_path):
    tiny_model(visual_expert="none", language_expert_layers="none").save_pretrained(tmp_path)
    edit(tmp_path, {"num_hidden_layers": 2})
    with pytest.raises(ValueError, match=r"2 decoder blocks that its config\.json has no place"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_the_same_changes_are_taken_where_the_caller_makes_them(folder):
    config = HyperLlavaConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = NUM_BLOCKS - 1
    fewer = AutoModelForImageTextToText.from_pretrained(folder, config=config)
    assert len(fewer.model.language_model.layers) == NUM_BLOCKS - 1
    plain = AutoModelForImageTextToText.from_pretrained(folder, language_expert_layers="none")
    assert not plain.config.language_expert_blocks
    config = HyperLlavaConfig.from_pretrained(folder)
    config.vision_config.num_hidden_layers -= 1
    smaller = HyperLlavaForConditionalGeneration.from_pretrained(folder, config=config)
    named = {name for name, _ in smaller.named_parameters() if "vision_tower" in name}
    assert not any(f".layers.{config.vision_config.num_hidden_layers}." in name for name in named)
    bare = HyperLlavaForConditionalGeneration.from_pretrained(
        folder, multimodal_projector_bias=False
    )
    assert bare.model.multi_modal_projector.linear_1.bias is None


@pytest.mark.parametrize("fields", [None, {}, {"model_type": "hyperllava"}])
def test_a_folder_that_says_nothing_of_its_decoder_is_refused_at_once(folder, fields):
    (folder / "config.json").unlink()
    if fields is not None:
        (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"no config\.json|without text_config"):
        HyperLlavaForConditionalGeneration.from_pretrained(folder)


def test_a_configuration_of_llavas_own_class_is_refused(folder):
    config = LlavaConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"found a LlavaConfig, expected a HyperLlavaConfig"):
        HyperLlavaForConditionalGeneration.from_pretrained(folder, config=config)


def test_the_folder_loads_again_once_its_config_is_restored(folder):
    path = folder / "config.json"
    stored = path.read_text()
    edit(folder, {"expert_input_dim": 4})
    with pytest.raises(ValueError, match="another shape"):
        AutoModelForImageTextToText.from_pretrained(folder)
    path.write_text(stored)
    loaded = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert differ(logits(loaded, **batch(ROWS)), logits(tiny_model(), **batch(ROWS))) < 1e-4


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "hidden_size", "wide"),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "vocab_size", True),
        ("vision_config", "num_hidden_layers", "5"),
    ],
)
def test_a_size_that_is_none_is_named(folder, part, name, value):
    edit(folder, {part: {name: value}})
    with pytest.raises(Exception, match=name) as caught:
        HyperLlavaForConditionalGeneration.from_pretrained(folder)
    # transformers 5 looks at types itself.
    assert type(caught.value).__name__ in ("ValueError", "StrictDataclassFieldValidationError")
