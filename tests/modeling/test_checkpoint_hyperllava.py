"""Loading and saving: LLaVA's layouts, missing keys, one key set on disk, every bit kept."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration, HyperLlavaModel
from tests.modeling.tiny_models import (
    ROWS,
    TEXT,
    as_llava,
    batch,
    differ,
    draw_weights,
    is_expert,
    llava_fields,
    logits,
    quiet_model,
    tiny_config,
    tiny_model,
)

GOLDEN = Path(__file__).with_name("golden_keys.txt")
EVERYWHERE = {"visual_expert": "both", "language_expert_layers": "all"}


def keys_on_disk(folder):
    found = set()
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


def assert_same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name


def edit_weights(folder, edit):
    path = Path(folder) / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


# keys


def test_keys_are_the_golden_list(tmp_path):
    """Visual expert in both places, language experts in all blocks; the same in memory."""
    model = quiet_model(**EVERYWHERE)
    model.save_pretrained(tmp_path)
    golden = GOLDEN.read_text().split()
    assert golden == sorted(golden)
    assert sorted(keys_on_disk(tmp_path)) == golden
    assert sorted(model.state_dict()) == golden


def test_experts_are_told_from_the_base_by_name_alone():
    model = quiet_model(**EVERYWHERE)
    plain = quiet_model(visual_expert="none", language_expert_layers="none")
    base = {name for name in model.state_dict() if not is_expert(name)}
    assert base == set(plain.state_dict())
    assert not [name for name in plain.state_dict() if is_expert(name)]


def test_only_w1_b1_w2_b2_are_shared_and_each_expert_has_its_own_e_and_b():
    names = [name for name in GOLDEN.read_text().split() if is_expert(name)]
    own = {"encoder_weight", "encoder_bias", "bias_down", "bias_up"}
    for n in range(4):
        prefix = f"model.language_model.layers.{n}.language_expert."
        assert {name[len(prefix) :] for name in names if name.startswith(prefix)} == own
    shared = "model.language_model.language_expert."
    assert {name[len(shared) :] for name in names if name.startswith(shared)} == {
        "hidden_weight",
        "hidden_bias",
        *(f"heads.0.{name}" for name in ("weight_down", "bias_down", "weight_up", "bias_up")),
    }


def test_expert_parameters_are_bare_so_that_no_quantiser_swaps_them():
    model = quiet_model(**EVERYWHERE)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert linear
    assert not [name for name in linear if is_expert(f"{name}.")]


# every bit


@pytest.mark.parametrize("source", ["guided", "latent", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_parameter_and_buffer_round_trips_bitwise(tmp_path, source, dtype):
    model = tiny_model(expert_source=source, **EVERYWHERE).to(dtype)
    assert all(p.any() for n, p in model.named_parameters() if is_expert(n))
    model.save_pretrained(tmp_path)
    loaded, info = HyperLlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, dtype=dtype
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_state(model, loaded)
    buffers, again = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert buffers.keys() == again.keys()
    # Rotary frequencies are made anew in fp32, which a model cast to bf16 has rounded.
    if dtype == torch.float32:
        assert all(torch.equal(buffers[name], again[name]) for name in buffers)
        # A loaded tensor may lie elsewhere in its page, and is then summed in another order.
        assert differ(logits(model, **batch(ROWS)), logits(loaded, **batch(ROWS))) < 1e-4


def test_shards_round_trip(tmp_path):
    model = tiny_model(**EVERYWHERE)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_state(model, HyperLlavaForConditionalGeneration.from_pretrained(tmp_path))
    assert sorted(keys_on_disk(tmp_path)) == GOLDEN.read_text().split()


def test_the_headless_model_loads_and_saves(tmp_path):
    model = tiny_model(**EVERYWHERE)
    model.save_pretrained(tmp_path / "whole")
    headless = HyperLlavaModel.from_pretrained(tmp_path / "whole")
    assert_same_state(model.model, headless)
    headless.save_pretrained(tmp_path / "headless")
    assert_same_state(headless, HyperLlavaModel.from_pretrained(tmp_path / "headless"))


def test_a_state_dict_given_by_hand_is_saved(tmp_path):
    model = tiny_model(**EVERYWHERE)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


# LLaVA checkpoints


def old_layout(name):
    """llava-hf's files from before transformers 4.52, which most of the Hub still holds."""
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.vision_tower.", "vision_tower.")
    name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
    return name.replace("lm_head.", "language_model.lm_head.")


def without_vision_model(name):
    """How transformers 5 calls the tower in memory."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


LAYOUTS = {
    "4.57 in memory": lambda name: name,
    "5.x in memory": without_vision_model,
    "old": old_layout,
    "old, as 5.x might write it": lambda name: old_layout(without_vision_model(name)),
}


def write_llava(folder, layout, base):
    """A llava-hf folder: LLaVA's config.json and its weights under one of the layouts."""
    config = LlavaConfig(**llava_fields())
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    state = {
        LAYOUTS[layout](name): value.clone()
        for name, value in base.state_dict().items()
        if not is_expert(name)
    }
    save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def base():
    return quiet_model(visual_expert="none", language_expert_layers="none")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_a_llava_becomes_a_hyperllava_in_one_line(tmp_path, layout, scope, base, caplog, capfd):
    write_llava(tmp_path, layout, base)
    caplog.set_level(logging.WARNING)
    model, info = HyperLlavaForConditionalGeneration.from_pretrained(
        tmp_path, language_guidance_scope=scope, output_loading_info=True
    )
    experts = {name for name in model.state_dict() if is_expert(name)}
    assert set(info["missing_keys"]) == experts
    assert not info["unexpected_keys"]
    assert model.config.language_guidance_scope == scope
    # Said once, in one line, whoever says it.
    said = [r.getMessage() for r in caplog.records if "hyperllava" in r.name]
    assert len(said) == 1
    assert f"{len(experts)} expert weights" in said[0]
    assert "\n" not in said[0]
    shown = capfd.readouterr()
    assert "MISSING" not in shown.err + shown.out
    assert "newly initialized" not in shown.err + shown.out

    inputs = batch(ROWS)
    extra = {"guidance_mask": inputs["attention_mask"]} if scope == "prompt" else {}
    found = logits(model.eval(), **inputs, **extra)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in base.state_dict().items())
    assert differ(found, logits(as_llava(base), **inputs)) < 1e-4
    llava, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    if not info["missing_keys"]:  # each line's LLaVA reads only some of the layouts
        assert torch.equal(found, logits(llava, **inputs))


def test_a_llava_that_transformers_itself_saved_becomes_a_hyperllava(tmp_path, base):
    llava = LlavaForConditionalGeneration(LlavaConfig(**llava_fields()))
    draw_weights(llava)
    llava.eval().save_pretrained(tmp_path / "llava")
    model = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert torch.equal(logits(model, **batch(ROWS)), logits(llava, **batch(ROWS)))
    # And is a HyperLLaVA from then on.
    model.save_pretrained(tmp_path / "hyper")
    again = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path / "hyper")
    assert_same_state(model, again)


def test_every_expert_field_can_be_chosen_by_keyword(tmp_path, base):
    write_llava(tmp_path, "old", base)
    fields = {
        "visual_expert": "both",
        "language_expert_layers": [1, 3],
        "language_guidance_layer": 1,
        "language_guidance_scope": "prompt",
        "language_guidance_pooling": "last",
        "expert_input_dim": 7,
        "expert_hidden_dim": 2,
        "expert_source": "latent",
    }
    model = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path, **fields)
    assert {name: getattr(model.config, name) for name in fields} == fields
    assert model.model.language_model.language_expert.hidden_weight.shape == (7, 7)


def test_an_invalid_keyword_stops_the_loading(tmp_path, base):
    write_llava(tmp_path, "old", base)
    with pytest.raises(ValueError, match="language_guidance_scope: found 'sample'"):
        HyperLlavaForConditionalGeneration.from_pretrained(
            tmp_path, language_guidance_scope="sample"
        )


def test_an_expert_free_hyperllava_is_a_llava(tmp_path, base):
    base.save_pretrained(tmp_path)
    config = LlavaConfig(**llava_fields())
    llava, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(llava, **batch(ROWS)), logits(base, **batch(ROWS)))


# keys that are missing or too many


@pytest.mark.parametrize("head", [HyperLlavaForConditionalGeneration, HyperLlavaModel])
def test_a_missing_base_weight_raises_and_names_keys(tmp_path, head):
    tiny_model().save_pretrained(tmp_path)
    lost = "model.language_model.layers.1.mlp.up_proj.weight"
    edit_weights(tmp_path, lambda state: {n: v for n, v in state.items() if n != lost})
    with pytest.raises(ValueError, match=r"1 base weights are missing.*layers\.1\.mlp\.up_proj"):
        head.from_pretrained(tmp_path)


def test_missing_base_weights_are_reported_to_who_asks_for_the_report(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    lost = "model.language_model.layers.1.mlp.up_proj.weight"
    edit_weights(tmp_path, lambda state: {n: v for n, v in state.items() if n != lost})
    _, info = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {lost}


def test_many_missing_base_weights_are_counted_and_some_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda state: {n: v for n, v in state.items() if "vision" not in n})
    with pytest.raises(ValueError, match=r"base weights are missing.*vision_tower.*more"):
        HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_partly_missing_experts_keep_those_that_were_loaded(tmp_path):
    model = tiny_model(**EVERYWHERE)
    model.save_pretrained(tmp_path)
    lost = [
        "model.language_model.language_expert.heads.0.weight_up",
        "model.language_model.layers.2.language_expert.encoder_weight",
        "model.multi_modal_projector.visual_expert.first.bias_down",
    ]
    edit_weights(tmp_path, lambda state: {n: v for n, v in state.items() if n not in lost})
    loaded, info = HyperLlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert set(info["missing_keys"]) == set(lost)
    found = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value) == (name not in lost), name
    assert not found[lost[0]].any()
    assert found[lost[1]].any()
    assert not found[lost[2]].any()


def test_experts_that_the_configuration_has_no_place_for_raise(tmp_path):
    tiny_model(language_expert_layers="all").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "language_expert_layers": "posterior"}))
    with pytest.raises(ValueError, match=r"8 expert weights that its config.json has no place for"):
        HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_other_experts_may_be_chosen_on_purpose(tmp_path, caplog):
    tiny_model(language_expert_layers="all").save_pretrained(tmp_path)
    caplog.set_level(logging.WARNING)
    model = HyperLlavaForConditionalGeneration.from_pretrained(
        tmp_path, language_expert_layers="posterior"
    )
    assert model.config.language_expert_blocks == [2, 3]
    assert any("8 expert weights of the checkpoint are not used" in m for m in caplog.messages)


@pytest.mark.parametrize("field", ["expert_input_dim", "expert_hidden_dim"])
def test_experts_of_another_size_raise(tmp_path, field):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)(mismatch|size|shape)"):
        HyperLlavaForConditionalGeneration.from_pretrained(tmp_path, **{field: 9})


# the folder


def test_a_saved_folder_holds_weights_configuration_and_code(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    modeling = Path(sys.modules["hyperllava_hf.modeling"].__file__).parent
    shipped = {path.name for path in modeling.glob("*.py")} - {"__init__.py"}
    assert shipped <= names
    for name in shipped:
        assert (tmp_path / name).read_bytes() == (modeling / name).read_bytes()
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["architectures"] == ["HyperLlavaForConditionalGeneration"]
    assert fields["auto_map"] == HyperLlavaConfig().to_dict()["auto_map"]


# the other line

SAVE = """
import sys, torch
sys.path[:0] = [{root!r}, {source!r}]
from tests.modeling.tiny_models import ROWS, batch, logits, tiny_model
model = tiny_model(visual_expert="both", language_expert_layers={layers!r},
                   language_guidance_scope={scope!r})
model.save_pretrained({folder!r})
inputs = batch(ROWS)
mask = {{"guidance_mask": inputs["attention_mask"]}} if {scope!r} == "prompt" else {{}}
torch.save((logits(model, **inputs, **mask), model.state_dict()), {folder!r} + "/expected.pt")
"""


@pytest.mark.parametrize(("scope", "layers"), [("token", "all"), ("prompt", "posterior")])
def test_a_folder_of_the_other_line_loads_with_equal_logits(tmp_path, other_python, scope, layers):
    package = Path(sys.modules["hyperllava_hf"].__file__).parent
    root, source = Path(__file__).parents[2], package.parent
    folder = str(tmp_path / "there")
    code = SAVE.format(
        root=str(root), source=str(source), folder=folder, scope=scope, layers=layers
    )
    done = subprocess.run([other_python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, info = HyperLlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected, state = torch.load(Path(folder) / "expected.pt")
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    inputs = batch(ROWS)
    mask = {"guidance_mask": inputs["attention_mask"]} if scope == "prompt" else {}
    assert (logits(model, **inputs, **mask) - expected).abs().max() < 1e-5
    # Saved again here, the folder has the same keys.
    model.save_pretrained(tmp_path / "here")
    assert keys_on_disk(tmp_path / "here") == keys_on_disk(folder)


def test_tied_embeddings_round_trip(tmp_path):
    """Small Llamas tie their head; LLaVA-1.5 does not."""
    config = tiny_config(text_config={**TEXT, "tie_word_embeddings": True})
    config.tie_word_embeddings = True
    model = HyperLlavaForConditionalGeneration(config).eval()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert_same_state(model, loaded)
