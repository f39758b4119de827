"""A tiny LLaVA of odd sizes, known weight by weight: what every layout is written from.

States are dicts of tensors under the names that transformers 4.57 gives LLaVA in memory, without
the vocabulary's padding, as the original checkpoints have it. Nothing here imports the conversion.
"""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from tests.modeling.tiny_models import draw_weights, in_llava_memory, is_expert, speak_up

VOCABULARY = 331
IMAGE, PAD = 331, 332  # added behind the vocabulary by a conversion
PADDED_VOCABULARY = 384
NUM_PATCHES = 16  # 28 px in patches of 7
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 41,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
VISION = {
    "hidden_size": 20,
    "intermediate_size": 34,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SHARED = {
    "image_token_index": IMAGE,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "image_seq_length": NUM_PATCHES,
    "pad_token_id": PAD,
}
EXPERTS = {"visual_expert": "both", "expert_input_dim": 5, "expert_hidden_dim": 3}


def llava_fields(vocab_size=PADDED_VOCABULARY):
    text = {"model_type": "llama", "vocab_size": vocab_size, "pad_token_id": 0, **TEXT}
    return {
        "text_config": text,
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        **SHARED,
    }


def to_canonical(state):
    """Rename what either transformers line has in memory."""
    inner, outer = "model.vision_tower.", "model.vision_tower.vision_model."
    return {
        name if name.startswith(outer) else name.replace(inner, outer): tensor.detach().clone()
        for name, tensor in state.items()
    }


def draw_state(seed=0, vocab_size=VOCABULARY):
    """The known LLaVA: every parameter at unit gain."""
    model = LlavaForConditionalGeneration(LlavaConfig(**llava_fields(vocab_size)))
    return to_canonical(draw_weights(model, seed).state_dict())


def draw_experts(seed=1, **fields):
    """Experts that act, by their names in a HyperLLaVA of the known LLaVA's sizes."""
    config = HyperLlavaConfig(**llava_fields(), **{**EXPERTS, **fields})
    state = speak_up(HyperLlavaForConditionalGeneration(config), seed).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if is_expert(name)}


def pad_vocabulary(state):
    """The rows that a conversion appends: each the mean of the rows that are there."""
    padded = dict(state)
    num_rows = -(-(len(state["lm_head.weight"]) + 2) // 64) * 64
    for name in EMBEDDINGS:
        mean = state[name].double().mean(0).to(state[name].dtype)
        new_rows = mean.expand(num_rows - len(state[name]), -1)
        padded[name] = torch.cat([state[name], new_rows])
    return padded


def fill(model, state):
    """Put weights into a model in their dtypes; what it computes with besides stays float32."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(state[name].dtype)
    model.load_state_dict(state, strict=True)
    return model.eval()


def as_llava(state, image=IMAGE):
    """transformers' own LLaVA with these weights."""
    fields = {**llava_fields(len(state["lm_head.weight"])), "image_token_index": image}
    config = LlavaConfig(**fields)
    return fill(LlavaForConditionalGeneration(config), in_llava_memory(state))


def as_hyperllava(state, experts, **fields):
    """A HyperLLaVA with these weights and experts."""
    vocab_size = len(state["lm_head.weight"])
    config = HyperLlavaConfig(**llava_fields(vocab_size), **{**EXPERTS, **fields})
    return fill(HyperLlavaForConditionalGeneration(config), {**state, **experts})


def build_prompts(image=IMAGE, dtype=torch.float32):
    """Two prompts: two images among text, and text alone."""
    generator = torch.Generator().manual_seed(7)

    def text(length):
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    marks = [image] * NUM_PATCHES
    pixels = torch.randn(2, 3, 28, 28, generator=generator, dtype=torch.float32).to(dtype)
    with_images = torch.tensor([[1, *text(3), *marks, *text(2), *marks, *text(7)]])
    return [
        {"input_ids": with_images, "pixel_values": pixels},
        {"input_ids": torch.tensor([[1, *text(11), 329, 330, 5, 70]])},
    ]


def compute_logits(model, image=IMAGE):
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return [model(**inputs).logits for inputs in build_prompts(image, dtype)]
