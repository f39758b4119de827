"""Attention: implementations that run here agree; one that cannot run says what to install."""

import pytest
import torch

from hyperllava_hf import HyperLlavaForConditionalGeneration
from tests.modeling.scope_modes import NEAR, marked
from tests.modeling.tiny_models import ROWS, batch, differ, logits, tiny_model

CHOICES = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flex_attention": "flex_attention",
    "flex decoder, eager tower": {"text_config": "flex_attention", "vision_config": "eager"},
    "eager decoder, sdpa tower": {"text_config": "eager", "vision_config": "sdpa"},
}


@pytest.fixture(scope="module", params=["token", "prompt"])
def model(request):
    return tiny_model(visual_expert="both", language_guidance_scope=request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("choice", CHOICES)
def test_implementations_agree_and_reach_both_parts(model, folder, choice):
    given = CHOICES[choice]
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(
        folder, attn_implementation=given
    ).eval()
    parts = {"text_config": loaded.model.language_model, "vision_config": loaded.model.vision_tower}
    for name, part in parts.items():
        expected = given[name] if isinstance(given, dict) else given
        assert part.config._attn_implementation == expected
    inputs = batch(ROWS)
    mask = marked(model, inputs["attention_mask"])
    kept = inputs["attention_mask"].bool()
    # transformers compiles flex attention, which needs a C++ compiler; eager computes the same.
    with torch.compiler.set_stance("force_eager"):
        found = logits(loaded, **inputs, **mask)
    assert differ(found[kept], logits(model, **inputs, **mask)[kept]) < NEAR


MISSING = {
    "flash_attention_2": "pip install flash-attn",
    "flash_attention_3": "flash_attn_3|kernels",
    "flash_attention_4": "pip install flash-attn-4",
    "kernels-community/flash-attn3": "pip install.*kernels",
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("place", ["whole", "decoder"])
def test_an_implementation_that_cannot_run_says_what_to_install(folder, name, place):
    given = name if place == "whole" else {"text_config": name}
    with pytest.raises((ImportError, ValueError), match=MISSING[name]):
        HyperLlavaForConditionalGeneration.from_pretrained(folder, attn_implementation=given)


def test_an_unknown_name_is_transformers_own_error(folder):
    with pytest.raises(ValueError, match=r"not supported\. The only possible arguments"):
        HyperLlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="fast")
