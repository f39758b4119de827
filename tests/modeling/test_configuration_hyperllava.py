"""Configuration: fields, defaults, faults, and what the derived properties say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlavaConfig

import hyperllava_hf
from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from tests.modeling.tiny_models import (
    ROWS,
    TEXT,
    VISION,
    batch,
    llava_fields,
    logits,
    tiny_config,
    tiny_model,
)

PACKAGE = Path(hyperllava_hf.__file__).parent

DEFAULTS = {
    "visual_expert": "first",
    "language_expert_layers": "posterior",
    "language_guidance_layer": None,
    "language_guidance_scope": "token",
    "language_guidance_pooling": "mean",
    "expert_input_dim": 64,
    "expert_hidden_dim": 16,
    "expert_source": "guided",
}


def config_of(num_blocks=4, **fields):
    return tiny_config(text_config={**TEXT, "num_hidden_layers": num_blocks}, **fields)


@pytest.mark.parametrize("field", DEFAULTS)
def test_defaults_are_the_specifications(field):
    assert getattr(HyperLlavaConfig(), field) == DEFAULTS[field]
    assert getattr(HyperLlavaConfig(**llava_fields()), field) == DEFAULTS[field]


def test_the_default_configuration_is_a_llava_of_7b():
    config = HyperLlavaConfig()
    assert config.model_type == "hyperllava"
    assert config.text_config.num_hidden_layers == 32
    assert config.guidance_layer == 16
    assert config.language_expert_blocks == list(range(16, 32))
    assert not config.guidance_from_embeddings


# L, language_expert_layers, language_guidance_layer -> blocks, k, whether embeddings guide
RESOLVED = [
    (4, "posterior", None, [2, 3], 2, False),
    (5, "posterior", None, [2, 3, 4], 2, False),
    (4, "posterior", 1, [2, 3], 1, False),
    (4, "posterior", 3, [3], 3, False),
    (7, "posterior", 5, [5, 6], 5, False),
    (4, "anterior", None, [0, 1], 2, True),
    (5, "anterior", None, [0, 1], 2, True),
    (4, "all", None, [0, 1, 2, 3], 2, True),
    (4, "all", 1, [0, 1, 2, 3], 1, True),
    (4, "none", None, [], 2, False),
    (4, [], None, [], 2, False),
    (4, [3], None, [3], 2, False),
    (4, [3, 2], None, [2, 3], 2, False),
    (4, [1, 3], None, [1, 3], 2, True),
    (4, [1, 3], 1, [1, 3], 1, False),
    (4, (2, 3), 2, [2, 3], 2, False),
    (2, "posterior", None, [1], 1, False),
    (3, "anterior", None, [0], 1, True),
]


@pytest.mark.parametrize(("num_blocks", "layers", "k", "blocks", "layer", "embeddings"), RESOLVED)
def test_placements_resolve(num_blocks, layers, k, blocks, layer, embeddings):
    config = config_of(num_blocks, language_expert_layers=layers, language_guidance_layer=k)
    assert config.language_expert_blocks == blocks
    assert config.guidance_layer == layer
    assert config.guidance_from_embeddings == embeddings


def test_an_empty_list_is_none():
    assert tiny_config(language_expert_layers=[]).language_expert_layers == "none"


INVALID = {
    "visual_expert": ["third", None, "", "First", ["first"], 1],
    "language_expert_layers": [
        "middle",
        None,
        4,
        [4],
        [-1],
        [2, 2],
        ["2"],
        [2.0],
        [True],
        [[2]],
        "2",
    ],
    "language_guidance_layer": [0, 4, -1, 2.0, "2", True],
    "language_guidance_scope": ["sample", None, "Token"],
    "language_guidance_pooling": ["max", None],
    "expert_input_dim": [0, -1, 1.5, "64", None, True],
    "expert_hidden_dim": [0, -16, 16.0, None],
    "expert_source": ["random", None],
    "vision_feature_select_strategy": ["cls", None],
    "vision_feature_layer": [9, -9, "-2", [], [9], None, 1.0],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in INVALID.items() for value in values]
)
def test_an_invalid_value_raises_what_was_found_and_expected(field, value):
    with pytest.raises(ValueError, match=rf"(?s){field}: found .*expected"):
        tiny_config(**{field: value})


def test_one_error_lists_every_fault():
    wrong = {field: values[0] for field, values in INVALID.items()}
    with pytest.raises(ValueError, match="Invalid HyperLlavaConfig") as caught:
        tiny_config(
            **wrong,
            text_config={**TEXT, "model_type": "mistral"},
            vision_config={**VISION, "model_type": "siglip_vision_model"},
        )
    for field in [*wrong, "text_config.model_type", "vision_config.model_type"]:
        assert f"- {field}: found" in str(caught.value)


def test_a_fault_set_later_stops_the_model():
    config = tiny_config()
    config.visual_expert = "third"
    with pytest.raises(ValueError, match="visual_expert: found 'third'"):
        HyperLlavaForConditionalGeneration(config)


# on disk


@pytest.mark.parametrize("fields", [{}, {"language_expert_layers": [1, 3]}, DEFAULTS])
def test_config_json_states_every_expert_field(tmp_path, fields):
    config = HyperLlavaConfig(**llava_fields(), **fields)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in DEFAULTS} == {**DEFAULTS, **fields}
    assert written["model_type"] == "hyperllava"
    for loaded in (
        HyperLlavaConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
    ):
        assert type(loaded) is HyperLlavaConfig
        assert {name: getattr(loaded, name) for name in DEFAULTS} == {**DEFAULTS, **fields}
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_config_json_holds_the_full_auto_map(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(written) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForVision2Seq",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        "AutoProcessor",
        "AutoImageProcessor",
    }
    # Local: no other repository is meant.
    assert not [target for target in written.values() if "--" in target or "/" in target]


def test_keywords_override_what_the_folder_says(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    loaded = HyperLlavaConfig.from_pretrained(
        tmp_path, language_expert_layers=[3], language_guidance_scope="prompt", expert_input_dim=7
    )
    assert loaded.language_expert_blocks == [3]
    assert loaded.guides_whole_samples
    assert loaded.expert_input_dim == 7
    assert loaded.expert_hidden_dim == 3


@pytest.mark.parametrize("field", DEFAULTS)
def test_an_invalid_keyword_raises(tmp_path, field):
    tiny_config().save_pretrained(tmp_path)
    value = INVALID[field][0]
    with pytest.raises(ValueError, match=rf"{field}: found"):
        HyperLlavaConfig.from_pretrained(tmp_path, **{field: value})


def test_a_keyword_may_repair_an_invalid_folder(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"visual_expert": "first"', '"visual_expert": "no"'))
    with pytest.raises(ValueError, match="visual_expert: found 'no'"):
        HyperLlavaConfig.from_pretrained(tmp_path)
    assert HyperLlavaConfig.from_pretrained(tmp_path, visual_expert="second")


def test_unused_keywords_are_returned(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config, unused = HyperLlavaConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, visual_expert="both", something_else=3
    )
    assert config.visual_expert == "both"
    assert unused == {"something_else": 3}


def test_a_llava_configuration_is_read_as_hyperllava(tmp_path):
    LlavaConfig(**llava_fields()).save_pretrained(tmp_path)
    config = HyperLlavaConfig.from_pretrained(tmp_path, language_guidance_scope="prompt")
    assert config.model_type == "hyperllava"
    assert config.language_guidance_scope == "prompt"
    assert config.text_config.hidden_size == TEXT["hidden_size"]
    assert config.image_token_id == 69


def test_the_configuration_file_imports_no_torch():
    # transformers itself runs without torch, and so must this file.
    source = PACKAGE / "modeling" / "configuration_hyperllava.py"
    lines = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"
        f"names = runpy.run_path({str(source)!r})\n"
        "config = names['HyperLlavaConfig'](visual_expert='both')\n"
        "assert config.guidance_layer == 16\n"
        "print(config.to_json_string()[:1])\n"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{"


@pytest.mark.parametrize("field", DEFAULTS)
def test_a_field_exists_only_if_something_reads_it(field):
    """Outside the file that declares it, or inside it from a property that others read."""
    folder = PACKAGE / "modeling"
    configuration = (folder / "configuration_hyperllava.py").read_text()
    derived = {
        "language_expert_layers": "language_expert_blocks",
        "language_guidance_layer": "guidance_layer",
        "language_guidance_scope": "guides_whole_samples",
    }
    name = derived.get(field, field)
    assert re.search(rf"self\.{field}\b", configuration)
    readers = [
        path.name
        for path in folder.glob("*.py")
        if path.name != "configuration_hyperllava.py"
        and re.search(rf"config\.{name}\b", path.read_text())
    ]
    assert readers


def test_each_field_changes_the_model():
    """Said once more without reading the source: no field is inert."""

    def outcome(**fields):
        model = tiny_model(**fields)
        inputs = batch(ROWS)
        extra = {}
        if fields.get("language_guidance_scope") == "prompt":
            extra["guidance_mask"] = inputs["attention_mask"]
        return logits(model, **inputs, **extra)

    prompt = {"language_guidance_scope": "prompt"}
    variants = [
        outcome(),
        outcome(visual_expert="second"),
        outcome(language_expert_layers="all"),
        outcome(language_guidance_layer=1),
        outcome(expert_input_dim=6),
        outcome(expert_hidden_dim=4),
        outcome(expert_source="latent"),
        outcome(**prompt),
        outcome(**prompt, language_guidance_pooling="text"),
        outcome(**prompt, language_guidance_pooling="last"),
    ]
    for i, first in enumerate(variants):
        for second in variants[:i]:
            assert not torch.allclose(first, second, atol=1e-3)


def test_guidance_fields_are_inert_where_nothing_is_guided():
    for source in ("latent", "static"):
        config = tiny_config(
            expert_source=source, language_guidance_scope="prompt", language_expert_layers="all"
        )
        assert not config.guides_whole_samples
        assert not config.guidance_from_embeddings
    assert not tiny_config(
        language_expert_layers="none", language_guidance_scope="prompt"
    ).guides_whole_samples
