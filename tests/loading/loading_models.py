"""Small models whose linear layers fill whole quantisation blocks, and what the tests read off."""

import torch

from tests.modeling.tiny_models import ROWS, TEXT, batch, is_expert, tiny_model

WIDE_TEXT = {**TEXT, "hidden_size": 64, "intermediate_size": 128}


def wide_model(**overrides):
    """A HyperLLaVA in bfloat16 whose decoder is wide enough for bitsandbytes' CPU layout."""
    fields = {"text_config": dict(WIDE_TEXT), "visual_expert": "both", **overrides}
    return tiny_model(**fields).to(torch.bfloat16)


def wide_inputs(dtype=torch.bfloat16):
    inputs = batch(ROWS)
    return {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}


def quantized_modules(model):
    """Names of the layers that bitsandbytes swapped."""
    kinds = ("Linear4bit", "Linear8bitLt")
    return {name for name, module in model.named_modules() if type(module).__name__ in kinds}


def decoder_linears(model):
    """Names of the layers that it should swap: the linear ones of the decoder's blocks."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".language_model.layers." in f".{name}"
    }


def unquantized(model):
    """The parameters outside the decoder's linear layers, by name."""
    return {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if is_expert(name) or ".language_model.layers." not in f".{name}" or "norm" in name
    }
