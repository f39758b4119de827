"""4-bit and 8-bit loading on the CPU: what is quantised, what is not, saving, QLoRA's way."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

import hyperllava_hf
from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaModel
from hyperllava_hf.modeling.quantization_hyperllava import SKIPPED_MODULES
from tests.loading.loading_models import (
    decoder_linears,
    quantized_modules,
    unquantized,
    wide_inputs,
    wide_model,
)
from tests.modeling.scope_modes import NEAR
from tests.modeling.tiny_models import differ, is_expert, logits, tiny_model

BF16 = {"bnb_4bit_compute_dtype": torch.bfloat16}
CONFIGS = {
    "4-bit": lambda: BitsAndBytesConfig(load_in_4bit=True, **BF16),
    "4-bit, nested": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **BF16
    ),
    "4-bit as a dictionary": lambda: {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
    "8-bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "recommended": hyperllava_hf.four_bit_config,
}


@pytest.fixture(scope="module")
def model():
    return wide_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    model.save_pretrained(folder)
    return folder


def load(folder, config, auto=True, **kwargs):
    if config == "8-bit":
        kwargs.setdefault("dtype", torch.bfloat16)
    loader = AutoModelForImageTextToText if auto else HyperLlavaForConditionalGeneration
    given = CONFIGS[config]() if isinstance(config, str) else config
    return loader.from_pretrained(folder, quantization_config=given, **kwargs).eval()


@pytest.mark.parametrize("auto", [True, False], ids=["auto class", "own class"])
@pytest.mark.parametrize("config", CONFIGS)
def test_only_the_decoders_linear_layers_are_quantised(folder, model, config, auto):
    loaded = load(folder, config, auto)
    assert quantized_modules(loaded) == decoder_linears(model)
    expected = unquantized(model)
    found = unquantized(loaded)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.bfloat16, name
        assert torch.equal(found[name], value), name
    assert torch.isfinite(logits(loaded, **wide_inputs())).all()


@pytest.mark.parametrize("given", [[], ["down_proj"], ["lm_head"], ["vision_tower"]], ids=str)
def test_a_users_skip_list_is_completed_on_a_copy(folder, model, given):
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=given, **BF16)
    before = copy.deepcopy(config)
    loaded = load(folder, config)
    assert config == before or config.to_dict() == before.to_dict()
    expected = decoder_linears(model)
    if given == ["down_proj"]:
        expected = {name for name in expected if not name.endswith("down_proj")}
    assert quantized_modules(loaded) == expected
    stored = loaded.config.quantization_config.llm_int8_skip_modules
    assert set(stored) == {*given, *SKIPPED_MODULES}


def test_the_headless_model_is_quantised_alike(folder, model):
    loaded = HyperLlavaModel.from_pretrained(folder, quantization_config=CONFIGS["4-bit"]())
    assert {f"model.{name}" for name in quantized_modules(loaded)} == decoder_linears(model)


def test_the_older_keyword_is_completed_too(folder, model):
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(
        folder, load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    assert quantized_modules(loaded) == decoder_linears(model)


def test_weights_outside_take_the_compute_dtype_unless_a_dtype_is_given(folder):
    for expected, kwargs in ((torch.float32, {}), (torch.bfloat16, {"dtype": torch.bfloat16})):
        loaded = load(folder, BitsAndBytesConfig(load_in_4bit=True), **kwargs)
        assert {value.dtype for value in unquantized(loaded).values()} == {expected}


def test_the_recommended_setting_is_nested_nf4_with_the_skip_list():
    config = hyperllava_hf.four_bit_config()
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype in (torch.bfloat16, torch.float16)
    assert set(config.llm_int8_skip_modules) == set(SKIPPED_MODULES)
    assert hyperllava_hf.four_bit_config("float16").bnb_4bit_compute_dtype == torch.float16


# saving


@pytest.mark.parametrize("config", ["4-bit", "4-bit, nested", "8-bit"])
@pytest.mark.parametrize("used", [False, True], ids=["unused", "after an answer"])
def test_a_quantised_model_is_saved_and_loads_equal(tmp_path, folder, config, used):
    """Also after a CPU forward, at which bitsandbytes repacks 4-bit layers."""
    loaded = load(folder, config)
    inputs = wide_inputs()
    if used:
        logits(loaded, **inputs)
    state = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path)
    expected = logits(loaded, **inputs)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert quantized_modules(again) == quantized_modules(loaded)
    found = again.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert differ(logits(again, **inputs), expected) < NEAR


def test_an_answer_changes_nothing_of_the_state_dict(folder):
    loaded = load(folder, "4-bit, nested")
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    first = logits(loaded, **wide_inputs())
    after = loaded.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert differ(logits(loaded, **wide_inputs()), first) < NEAR


SAVE_QUANTIZED = """
import sys
sys.path[:0] = [{root!r}, {source!r}]
import hyperllava_hf
from tests.loading.test_quantization import load
load({folder!r}, "recommended").save_pretrained({target!r})
"""


def test_a_quantised_folder_of_the_other_line_loads(tmp_path, folder, other_python):
    root = Path(__file__).parents[2]
    source = Path(sys.modules["hyperllava_hf"].__file__).parents[1]
    code = SAVE_QUANTIZED.format(
        root=str(root), source=str(source), folder=str(folder), target=str(tmp_path)
    )
    done = subprocess.run([other_python, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    there = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    here = load(folder, "recommended")
    assert quantized_modules(there) == quantized_modules(here)
    assert differ(logits(there, **wide_inputs()), logits(here, **wide_inputs())) < NEAR


# experts trained beside 4-bit weights


def expert_gradients(model):
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_expert(name))
    model.train().zero_grad()
    inputs = wide_inputs()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_experts_are_bit_equal_to_the_16_bit_models_and_train(folder, model):
    loaded = load(folder, "recommended")
    found = loaded.state_dict()
    experts = {name: value for name, value in model.state_dict().items() if is_expert(name)}
    assert experts
    assert all(torch.equal(found[name], value) for name, value in experts.items())
    gradients = expert_gradients(loaded)
    assert gradients.keys() == experts.keys()
    assert all(gradient.any() for gradient in gradients.values())


def test_gradients_are_the_same_after_an_evaluation(folder):
    """bitsandbytes' CPU layout, which an answer leaves behind, would pass no gradient on."""
    expected = expert_gradients(load(folder, "recommended"))
    used = load(folder, "recommended")
    logits(used, **wide_inputs())
    found = expert_gradients(used)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_trained_experts_of_a_4_bit_model_are_saved_with_it(tmp_path, folder):
    loaded = load(folder, "recommended")
    gradients = expert_gradients(loaded)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if name in gradients:
                parameter -= 0.1 * gradients[name].sign()
    loaded.eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[n], p) for n, p in loaded.named_parameters() if is_expert(n))


def test_odd_widths_run_although_the_cpu_layout_does_not_take_them(tmp_path):
    tiny_model(visual_expert="both").to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load(tmp_path, "4-bit")
    assert quantized_modules(loaded)
    assert torch.isfinite(logits(loaded, **wide_inputs())).all()


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_both_scopes_generate_in_4_bit(tmp_path, scope):
    wide_model(language_guidance_scope=scope).save_pretrained(tmp_path)
    loaded = load(tmp_path, "recommended")
    inputs = wide_inputs()
    first = loaded.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(first, loaded.generate(**inputs, max_new_tokens=3, do_sample=False))
    cached = loaded.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
    assert cached.shape == first.shape
