"""Tiny HyperLLaVA and LLaVA models with weights that matter, and rows of tokens for them.

Every base weight is drawn at unit gain, and `speak_up` draws every expert parameter too: with
transformers' own small initialisation, a wrong expert would hide below the tolerance.
"""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration

PAD, BOS, EOS, IMAGE = 0, 1, 2, 69
VOCABULARY = 70
NUM_PATCHES = 4  # 28 px in patches of 14
NUM_BLOCKS = 4

TEXT = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 23,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 17,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 8,
}
EXPERTS = {"expert_input_dim": 5, "expert_hidden_dim": 3}


def llava_fields(**overrides):
    """The fields that LLaVA and HyperLLaVA share, fresh dictionaries each time."""
    fields = {
        "vision_config": dict(VISION),
        "text_config": dict(TEXT),
        "image_token_index": IMAGE,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": NUM_PATCHES,
        "pad_token_id": PAD,
    }
    return {**fields, **overrides}


def tiny_config(**overrides):
    return HyperLlavaConfig(**{**llava_fields(), **EXPERTS, **overrides})


def is_expert(name):
    """The rule of the specification, written once more."""
    return "visual_expert." in name or "language_expert." in name


@torch.no_grad()
def draw_weights(model, seed=0, experts=False):
    """Redraw base parameters at unit gain, or (experts=True) the experts', biases included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if is_expert(name) != experts:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(noise)
        elif "weight_down" in name or "weight_up" in name:
            # (M, width, D): both M and the input's width are summed over.
            fan_in = parameter.shape[0] * parameter.shape[2 if "down" in name else 1]
            parameter.copy_(noise * fan_in**-0.5)
        elif "bias_up" in name or "bias_down" in name:
            parameter.copy_(noise * 0.3)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model


def speak_up(model, seed=1):
    """Make every expert parameter non-zero."""
    return draw_weights(model, seed, experts=True)


def quiet_model(seed=0, **overrides):
    """A HyperLLaVA whose experts are as initialised."""
    torch.manual_seed(seed)
    return draw_weights(HyperLlavaForConditionalGeneration(tiny_config(**overrides)), seed).eval()


def tiny_model(seed=0, **overrides):
    """A HyperLLaVA whose experts all act."""
    return speak_up(quiet_model(seed, **overrides), seed + 1)


def in_llava_memory(state):
    """Rename base keys to what transformers' LLaVA calls them in memory on this line."""
    model = LlavaForConditionalGeneration(LlavaConfig(**llava_fields()))
    nested = any("vision_tower.vision_model." in name for name in model.state_dict())
    return {
        name if nested else name.replace("vision_tower.vision_model.", "vision_tower."): value
        for name, value in state.items()
        if not is_expert(name)
    }


def as_llava(model, **overrides):
    """transformers' own LLaVA with the model's base weights."""
    llava = LlavaForConditionalGeneration(LlavaConfig(**llava_fields(**overrides)))
    llava.load_state_dict(in_llava_memory(model.state_dict()), strict=True)
    return llava.to(model.dtype).eval()


def row(*parts, seed=0):
    """One prompt: each part is a number of text tokens, or "image"; starts with BOS.

    row(3, "image", 2) is BOS t t t <image> x 4 t t.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    ids, num_images = [BOS], 0
    for part in parts:
        if part == "image":
            ids += [IMAGE] * NUM_PATCHES
            num_images += 1
        else:
            ids += torch.randint(3, IMAGE, (part,), generator=generator).tolist()
    inputs = {"input_ids": torch.tensor([ids])}
    if num_images:
        inputs["pixel_values"] = torch.randn(num_images, 3, 28, 28, generator=generator)
    return inputs


def batch(rows, side="left"):
    """Pad rows to one length; images in the order of their rows."""
    length = max(r["input_ids"].shape[1] for r in rows)
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, r in enumerate(rows):
        n = r["input_ids"].shape[1]
        where = slice(length - n, length) if side == "left" else slice(0, n)
        ids[i, where] = r["input_ids"][0]
        mask[i, where] = 1
    return {"input_ids": ids, "attention_mask": mask, **images(rows)}


def images(rows):
    """The rows' images, in order; no entry where there are none."""
    pixels = [r["pixel_values"] for r in rows if "pixel_values" in r]
    return {"pixel_values": torch.cat(pixels)} if pixels else {}


def prompt_mask(inputs, lengths):
    """guidance_mask that marks the first `lengths[i]` attended positions of row i."""
    attended = inputs.get("attention_mask")
    if attended is None:
        attended = torch.ones_like(inputs["input_ids"])
    number = attended.cumsum(-1)
    return ((number <= torch.tensor(lengths)[:, None]) & attended.bool()).long()


ROWS = [
    row(4, "image", 5, seed=1),
    row(3, seed=2),
    row("image", 2, "image", 6, seed=3),
    row(11, seed=4),
]


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def differ(first, second):
    return (first.float() - second.float()).abs().max().item()
