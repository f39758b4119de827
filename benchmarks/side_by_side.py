"""LLaVA and both scopes of HyperLLaVA over one set of random base weights, and their arithmetic.

The three models hold the very same base tensors, so that they differ in the experts alone, fit
beside one another, and read their weights from the same memory. The experts are drawn at random:
none of them is zero, so nothing can be skipped.

Sizes: "7B" is LLaVA-1.5-7B, "cpu" its shape at width 2048 with 6 blocks, "tiny" tries a script,
"narrow" has 7B's 32 blocks and counts operations.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from harness import BASELINE
from transformers import LlavaConfig, LlavaForConditionalGeneration

from hyperllava_hf import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from hyperllava_hf.modeling.checkpoint_hyperllava import is_expert_key

SCOPES = ("prompt", "token")
# Text width, MLP width, blocks, heads, vocabulary; tower width, MLP width, blocks, heads, edge.
SIZES = {
    "7B": ((4096, 11008, 32, 32, 32064), (1024, 4096, 24, 16, 336)),
    "cpu": ((2048, 5504, 6, 16, 8192), (512, 2048, 4, 8, 168)),
    "tiny": ((64, 160, 4, 4, 256), (32, 64, 3, 4, 28)),
    "narrow": ((64, 160, 32, 4, 256), (32, 64, 3, 4, 28)),
}
PATCH = 14
# Of the base weights: fan-in of width 2048, about.
STD = 0.02


def build_configs(size: str, attention: str) -> dict[str, Any]:
    """Return the configuration of each variant, the baseline's first."""
    (width, inner, blocks, heads, vocabulary), tower = SIZES[size]
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
    }
    tower_width, tower_inner, tower_blocks, tower_heads, edge = tower
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": tower_width,
        "intermediate_size": tower_inner,
        "num_hidden_layers": tower_blocks,
        "num_attention_heads": tower_heads,
        "image_size": edge,
        "patch_size": PATCH,
        "projection_dim": tower_width,
    }

    def fields() -> dict[str, Any]:
        return {
            "text_config": dict(text),
            "vision_config": dict(vision),
            "image_token_index": vocabulary - 1,
            "image_seq_length": (edge // PATCH) ** 2,
        }

    configs: dict[str, Any] = {BASELINE: LlavaConfig(**fields())}
    for scope in SCOPES:
        configs[scope] = HyperLlavaConfig(**fields(), language_guidance_scope=scope)
    for config in configs.values():
        config._attn_implementation = attention
    return configs


def draw_weights(shapes: dict[str, torch.Size], device: str, dtype: Any) -> dict[str, Any]:
    """Draw all weights on the device: norms 1, the rest normal, experts at their own scale."""
    generator = torch.Generator(device).manual_seed(0)
    drawn = {}
    for key, shape in shapes.items():
        if "norm" in key and key.endswith("weight"):
            drawn[key] = torch.ones(shape, device=device, dtype=dtype)
            continue
        value = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        drawn[key] = value.mul_((shape[0] * shape[-1]) ** -0.5 if is_expert_key(key) else STD)
    return drawn


def build_models(size: str, device: str, dtype: Any, attention: str = "sdpa") -> dict[str, Any]:
    """Build the baseline and both scopes over shared base weights.

    Args:
        size: A key of `SIZES`.
        device: Torch device.
        dtype: Of all weights.
        attention: Attention implementation.

    Returns:
        dict[str, Any]: Models by variant, in evaluation mode.
    """
    models: dict[str, Any] = {}
    with init_empty_weights(include_buffers=False):
        for name, config in build_configs(size, attention).items():
            is_base = name == BASELINE
            kind = LlavaForConditionalGeneration if is_base else HyperLlavaForConditionalGeneration
            models[name] = kind(config)
    shapes = {key: value.shape for key, value in models["token"].state_dict().items()}
    weights = draw_weights(shapes, device, dtype)
    for name, model in models.items():
        own = model.state_dict()
        # transformers 5 has LLaVA's tower in memory without this level of names.
        short = {key.replace("vision_tower.vision_model.", "vision_tower."): key for key in weights}
        found = {key: weights[key if key in weights else short[key]] for key in own}
        model.load_state_dict(found, strict=True, assign=True)
        # Fake tensors, of a count, cannot be moved, and are not: everything is on the CPU.
        models[name] = (model if device == "cpu" else model.to(device)).eval().requires_grad_(False)
        models[name].generation_config.eos_token_id = None
    return models


def build_inputs(model: Any, batch_size: int, num_text: int) -> dict[str, Any]:
    """Draw a batch of prompts: BOS, one image, `num_text` - 1 further tokens.

    Args:
        model: A variant.
        batch_size: Rows.
        num_text: Text tokens a row.

    Returns:
        dict[str, Any]: input_ids, attention_mask and pixel_values.
    """
    config, device = model.config, model.device
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, config.image_token_id - 1, (batch_size, num_text), generator=generator)
    image = torch.full((batch_size, config.image_seq_length), config.image_token_id)
    edge = config.vision_config.image_size
    pixels = torch.randn(batch_size, 3, edge, edge, generator=generator)
    ids = torch.cat([text[:, :1], image, text[:, 1:]], 1).to(device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(device, model.dtype),
    }


def mark_prompt(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword by which a variant learns what the prompt is."""
    return {"guidance_mask": inputs["attention_mask"]} if name == "prompt" else {}


def compute_share(config: Any, num_prompt: int | None) -> float:
    """Compute the arithmetic that scope "token" adds, as a share of the whole model's.

    A position costs an expert block (M + 1) 3R D multiplications; a plain block 4 D^2 + 3 D I and
    its attention. Vision tower, projector and head count as parts of the model.

    Args:
        config: `HyperLlavaConfig` of scope "token".
        num_prompt: Positions of a prefill with one image, or None for one decoded token.

    Returns:
        float: The share; the encoders and the visual expert are left out of it.
    """
    text, vision = config.text_config, config.vision_config
    width, blocks = text.hidden_size, text.num_hidden_layers
    code_dim, hidden_dim = config.expert_input_dim, config.expert_hidden_dim
    own = len(config.language_expert_blocks) * (code_dim + 1) * 3 * hidden_dim * width
    whole = blocks * (4 * width**2 + 3 * width * text.intermediate_size)
    head = text.vocab_size * width
    if num_prompt is None:
        return own / (whole + head)
    patches = (vision.image_size // vision.patch_size) ** 2
    tower = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    tower = vision.num_hidden_layers * tower + width * (vision.hidden_size + width)
    attention = blocks * width * num_prompt  # causal: half of 2 T D
    return num_prompt * own / (num_prompt * (whole + attention) + patches * tower + head)


def compute_goal(name: str, prompt_goal: float, share: float) -> float:
    """Return the largest ratio to LLaVA that is good enough."""
    return prompt_goal if name == "prompt" else 1 + 1.3 * share


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    """Run without gradients."""
    return torch.no_grad()(run)
