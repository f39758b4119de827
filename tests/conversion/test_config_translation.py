"""Configurations of every kind of source and target: what is kept, refused, and read alike."""

import json
import subprocess
import sys

import pytest

from hyperllava_hf import HyperLlavaConfig
from hyperllava_hf.conversion.config_export import build_llava_config, build_llava_hf_config
from hyperllava_hf.conversion.config_fields import normalize_text_config, normalize_vision_config
from hyperllava_hf.conversion.config_translation import (
    build_hyperllava_config,
    describe_losses,
    normalize_llava_hf_config,
    read_expert_fields,
    translate_llava_config,
    translate_llm_config,
)
from hyperllava_hf.conversion.vision_configs import (
    find_vision_config,
    guess_vision_tower_name,
    load_vision_config,
)

TOWER = "openai/clip-vit-large-patch14-336"
# config.json of liuhaotian/llava-v1.5-7b.
LLAVA_15 = {
    "_name_or_path": "llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_length": 4096,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": TOWER,
    "model_type": "llava",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": 32000,
}
VICUNA = {
    "_name_or_path": "vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


def translate(**changes):
    config = {**LLAVA_15, **changes}
    return translate_llava_config(config, find_vision_config(TOWER), 32064, 32000, 32001)


def test_llava_15_becomes_the_published_llava_hf_fields():
    config = translate()
    expected = {
        "model_type": "llava",
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 576,
        "dtype": "float16",
    }
    assert {name: config[name] for name in expected} == expected
    text, vision = config["text_config"], config["vision_config"]
    assert (text["model_type"], text["vocab_size"], text["rms_norm_eps"]) == ("llama", 32064, 1e-5)
    assert (text["hidden_size"], text["max_position_embeddings"]) == (4096, 4096)
    assert not any(name.startswith(("mm_", "tune_", "image_")) for name in text)
    assert (vision["hidden_size"], vision["image_size"], vision["patch_size"]) == (1024, 336, 14)
    assert (vision["num_hidden_layers"], vision["projection_dim"]) == (24, 768)


def test_full_features_count_the_class_feature():
    config = translate(mm_vision_select_feature="cls_patch")
    assert config["vision_feature_select_strategy"] == "full"
    assert config["image_seq_length"] == 577


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": None},
            {"rope_theta": 5e5, "rope_scaling": None},
        ),
        (
            {"rope_parameters": {"rope_theta": 9.0, "rope_type": "dynamic", "factor": 2.0}},
            {"rope_theta": 9.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        ),
        (
            {"num_key_value_heads": 8, "attention_bias": True, "max_position_embeddings": 99},
            {"num_key_value_heads": 8, "attention_bias": True, "max_position_embeddings": 99},
        ),
        (
            {"tie_word_embeddings": True, "head_dim": 64},
            {"tie_word_embeddings": True, "head_dim": 64},
        ),
    ],
)
def test_decoder_fields_are_kept(changes, fields):
    text = translate(**changes)["text_config"]
    assert {name: text[name] for name in fields} == fields


def test_tied_embeddings_are_stated_for_both_lines():
    assert translate(tie_word_embeddings=True)["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"model_type": "llava_mistral"}, "model_type"),
        ({"model_type": "llava_mpt"}, "model_type"),
        ({"model_type": "llava_qwen"}, "model_type"),
        ({"architectures": ["LlavaMistralForCausalLM"]}, "architectures"),
        ({"mm_vision_tower": "google/siglip-so400m-patch14-384"}, "mm_vision_tower"),
        ({"mm_vision_tower": "/data/EVA02-CLIP-L-14-336"}, "mm_vision_tower"),
        ({"mm_hidden_size": 1152}, "mm_hidden_size"),
        ({"s2": True}, "s2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window"),
    ],
)
def test_what_the_architecture_lacks_is_refused_by_name(changes, name):
    with pytest.raises(
        ValueError, match=rf"cannot become a HyperLLaVA:\n- {name}: found .*expected"
    ):
        translate(**changes)


def test_all_faults_are_named_together():
    with pytest.raises(
        ValueError, match=r"model_type(.|\n)*mm_vision_tower(.|\n)*mm_projector_type"
    ):
        translate(model_type="llava_mpt", mm_vision_tower="eva_clip", mm_projector_type="linear")


def test_a_missing_projector_type_is_the_original_default_of_one_layer():
    config = {name: value for name, value in LLAVA_15.items() if name != "mm_projector_type"}
    with pytest.raises(ValueError, match="mm_projector_type: found 'linear'"):
        translate_llava_config(config, find_vision_config(TOWER), 32064, 32000, 32001)


def test_a_patch_token_and_later_model_types_are_accepted():
    assert translate(model_type="llava_llama", mm_use_im_patch_token=True)["model_type"] == "llava"
    (note,) = describe_losses({**LLAVA_15, "mm_use_im_patch_token": True})
    assert "<im_patch>" in note


def test_tiles_of_v16_are_reported_as_lost():
    extras = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    extras["image_grid_pinpoints"] = [[336, 672]]
    assert translate(**extras)["image_seq_length"] == 576
    (note,) = describe_losses({**LLAVA_15, **extras})
    assert "tiles" in note
    assert describe_losses(LLAVA_15) == []


def test_a_plain_llm_gets_llava_15_multimodal_fields():
    config = translate_llm_config(VICUNA, None, find_vision_config(TOWER), 32064, 32000, 32001)
    assert config == translate()


def test_an_adapters_own_fields_win_and_are_checked():
    adapter = {**LLAVA_15, "mm_vision_select_layer": -3, "hidden_size": 7}
    arguments = (find_vision_config(TOWER), 32064, 32000, 32001)
    config = translate_llm_config(VICUNA, adapter, *arguments)
    assert config["vision_feature_layer"] == -3
    assert config["text_config"]["hidden_size"] == 4096
    with pytest.raises(ValueError, match="mm_projector_type"):
        translate_llm_config(VICUNA, {**adapter, "mm_projector_type": "linear"}, *arguments)
    with pytest.raises(ValueError, match="model_type: found 'mistral'"):
        translate_llm_config({**VICUNA, "model_type": "mistral"}, None, *arguments)
    with pytest.raises(ValueError, match="model_type: found 'llava_mpt'"):
        translate_llm_config(VICUNA, {**adapter, "model_type": "llava_mpt"}, *arguments)


def test_a_published_sparse_llava_hf_config_is_completed():
    published = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {**VICUNA, "vocab_size": 32064},
        "torch_dtype": "float16",
        "vision_config": dict(find_vision_config(TOWER)),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    assert normalize_llava_hf_config(published) == translate()
    assert normalize_llava_hf_config({**published, "vision_config": None}) == translate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": {"model_type": "mistral"}}, "text_config.model_type: found 'mistral'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type"),
        ({"model_type": "llava_next"}, "model_type: found 'llava_next'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_other_families_in_transformers_form_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        normalize_llava_hf_config({**translate(), **changes})


def test_translating_there_and_back_keeps_the_original_fields():
    hyper = build_hyperllava_config(translate(rope_theta=5e5, num_key_value_heads=8))
    back = build_llava_config(hyper, 32000, TOWER)
    ignored = {"_name_or_path", "max_length", "transformers_version", "unfreeze_mm_vision_tower"}
    expected = {**LLAVA_15, "rope_theta": 5e5, "num_key_value_heads": 8}
    assert {name: back[name] for name in expected if name not in ignored} == {
        name: value for name, value in expected.items() if name not in ignored
    }
    again = translate_llava_config(back, find_vision_config(TOWER), 32064, 32000, 32001)
    assert again == translate(rope_theta=5e5, num_key_value_heads=8)


def test_the_original_form_refuses_what_it_cannot_say():
    config = {**translate(), "projector_hidden_act": "relu", "multimodal_projector_bias": False}
    config["vision_feature_layer"] = [-2, -3]
    with pytest.raises(ValueError, match=r"hidden_act(.|\n)*projector_bias(.|\n)*feature_layer"):
        build_llava_config(config, 32000, TOWER)


def test_the_llava_hf_form_has_no_experts_and_no_remote_code():
    hyper = build_hyperllava_config(translate(), {"visual_expert": "both"})
    config = build_llava_hf_config(hyper)
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert (config["model_type"], config["ignore_index"]) == ("llava", -100)
    assert (config["torch_dtype"], config["text_config"]["torch_dtype"]) == ("float16",) * 2
    assert not {"auto_map", "visual_expert", "expert_source", "dtype"} & set(config)
    assert normalize_llava_hf_config(config) == translate()


def test_expert_fields_are_stated_and_checked_together():
    config = build_hyperllava_config(translate(), {"language_expert_layers": [5, 4]}, "bfloat16")
    assert config["model_type"] == "hyperllava"
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"
    assert config["auto_map"]["AutoModelForVision2Seq"].startswith("modeling_hyperllava.")
    assert read_expert_fields(config)["language_expert_layers"] == [5, 4]
    assert (
        build_hyperllava_config(normalize_llava_hf_config(config), read_expert_fields(config))
        == config
    )
    with pytest.raises(
        ValueError, match="unknown expert fields:\n- experts: expected one of visual"
    ):
        build_hyperllava_config(translate(), {"experts": 1})
    with pytest.raises(ValueError, match=r"visual_expert(.|\n)*expert_input_dim"):
        build_hyperllava_config(translate(), {"visual_expert": "third", "expert_input_dim": 0})


def test_a_config_that_this_line_saved_is_read_back_to_the_same_fields(tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = build_hyperllava_config(translate(rope_theta=5e5, rope_scaling=scaling))
    HyperLlavaConfig.from_dict(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    rebuilt = build_hyperllava_config(normalize_llava_hf_config(saved), read_expert_fields(saved))
    assert rebuilt == config


READ_BOTH = """
import json, sys
from transformers import LlavaConfig
from hyperllava_hf import HyperLlavaConfig
for kind, folder in ((HyperLlavaConfig, sys.argv[1]), (LlavaConfig, sys.argv[2])):
    config = kind.from_pretrained(folder)
    text = config.text_config.to_dict()
    rope = text.get("rope_parameters") or {"rope_theta": text["rope_theta"], **text["rope_scaling"]}
    rope.pop("type", None)
    print(json.dumps([
        sorted(rope.items()), str(config.dtype), str(config.text_config.dtype),
        config.image_token_id, config.image_token_index, config.pad_token_id,
        config.tie_word_embeddings,
        config.text_config.tie_word_embeddings, config.text_config.num_key_value_heads,
        config.vision_config.image_size, config.image_seq_length,
    ]))
"""


def test_both_lines_read_the_same_from_a_written_config(tmp_path, other_python):
    scaling = {"type": "linear", "factor": 2.0}
    hyper = build_hyperllava_config(translate(rope_theta=5e5, rope_scaling=scaling))
    folders = {"hyper": hyper, "hf": build_llava_hf_config(hyper)}
    for name, config in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    arguments = ["-c", READ_BOTH, str(tmp_path / "hyper"), str(tmp_path / "hf")]
    here, there = (
        subprocess.run([python, *arguments], capture_output=True, text=True, check=True).stdout
        for python in (sys.executable, other_python)
    )
    assert here == there
    assert json.loads(here.splitlines()[0])[0] == [
        ["factor", 2.0],
        ["rope_theta", 5e5],
        ["rope_type", "linear"],
    ]


def test_normalizing_twice_changes_nothing():
    text, vision = normalize_text_config(VICUNA), find_vision_config(TOWER)
    assert normalize_text_config(text) == text
    assert normalize_vision_config(vision) == vision


def test_a_tower_is_known_by_the_end_of_its_path():
    assert find_vision_config("/data/CLIP-ViT-large-patch14-336/") == find_vision_config(TOWER)
    assert find_vision_config("openai/clip-vit-large-patch14")["image_size"] == 224
    assert guess_vision_tower_name(find_vision_config(TOWER)) == TOWER
    assert guess_vision_tower_name(normalize_vision_config({"hidden_size": 8})) is None
    for name in ("laion/CLIP-ViT-H-14", None):
        with pytest.raises(ValueError, match=r"the vision tower is .*--vision-tower"):
            find_vision_config(name)


def test_a_clip_folder_gives_its_vision_half(tmp_path):
    path = tmp_path / "config.json"
    half = {"model_type": "clip_vision_model", "hidden_size": 24, "patch_size": 7}
    expected = normalize_vision_config(half)
    path.write_text(json.dumps(half))
    assert load_vision_config(tmp_path) == expected
    whole = {"model_type": "clip", "vision_config": {"hidden_size": 24, "patch_size": 32}}
    path.write_text(json.dumps({**whole, "vision_config_dict": {"patch_size": 7}}))
    assert load_vision_config(tmp_path) == expected
    path.write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match="model_type 'siglip', expected 'clip'"):
        load_vision_config(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_vision_config(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"found no config.json .*--vision-tower"):
        load_vision_config(tmp_path)
