"""The few places where transformers 4.57 and 5.x differ, so that no other shipped file asks.

Each difference is found by looking for the thing itself, not by comparing version numbers.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.utils import generic

_EMBEDS = next(
    name for name in inspect.signature(create_causal_mask).parameters if name.endswith("_embeds")
)
# 4.57's mask and attention ask for it; elsewhere positions say the same.
NEEDS_CACHE_POSITION = "cache_position" in inspect.signature(create_causal_mask).parameters


def record_outputs(forward: Any) -> Any:
    """Decorate a decoder's forward as transformers decorates its own.

    Defaults come from the configuration, and hidden states and attentions are collected on demand.

    Args:
        forward: The method.

    Returns:
        Any: The decorated method.
    """
    try:
        from transformers.utils.output_capturing import capture_outputs
    except ImportError:
        return generic.check_model_inputs(forward)
    return generic.merge_with_config_defaults(capture_outputs(forward))


def build_causal_mask(
    config: Any,
    inputs_embeds: torch.Tensor,
    attention_mask: Any,
    cache_position: torch.Tensor | None,
    past_key_values: Any,
    position_ids: torch.Tensor,
) -> Any:
    """Build the decoder's causal mask in the form its attention implementation reads.

    Args:
        config: Decoder configuration.
        inputs_embeds: Embeddings (B, L, D).
        attention_mask: Mask as the caller gave it.
        cache_position: Positions of the inputs in the cache (L,).
        past_key_values: Cache or None.
        position_ids: Positions (1 or B, L).

    Returns:
        Any: The mask, None where none is needed.
    """
    kwargs = {
        "config": config,
        _EMBEDS: inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    return create_causal_mask(**kwargs, **cache_position_kwargs(cache_position))


def cache_position_kwargs(cache_position: torch.Tensor | None) -> dict[str, Any]:
    """Return the keyword by which 4.57's attention finds its place in a static cache.

    Args:
        cache_position: Positions of the inputs in the cache (L,); None where nothing needs it.

    Returns:
        dict[str, Any]: The keyword, or nothing where caches count for themselves.
    """
    return {"cache_position": cache_position} if NEEDS_CACHE_POSITION else {}


class NestedVisionTower(nn.Module):
    """CLIP under the name `vision_model`, as it stands on 4.57 and in every LLaVA checkpoint.

    transformers 5 dropped that level of names in memory. Keeping it gives one key set on both
    lines, in memory and on disk, so state dicts, device maps and module lists mean
    the same everywhere.

    Args:
        vision_model: transformers' vision model.
    """

    def __init__(self, vision_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.config = vision_model.config
        # Read off the tower, as off every other.
        self._supports_sdpa = getattr(vision_model, "_supports_sdpa", False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the vision model.

        Args:
            *args: As the vision model's.
            **kwargs: As the vision model's.

        Returns:
            Any: As the vision model's.
        """
        return self.vision_model(*args, **kwargs)


def nest_vision_tower(vision_tower: nn.Module) -> nn.Module:
    """Return the tower with its parameters under `vision_model.`, whichever line built it.

    Args:
        vision_tower: What `AutoModel.from_config(vision_config)` returned.

    Returns:
        nn.Module: The tower itself, or a wrapper.
    """
    _install_capturing_hooks(vision_tower)
    return (
        vision_tower if hasattr(vision_tower, "vision_model") else NestedVisionTower(vision_tower)
    )


def _install_capturing_hooks(vision_tower: nn.Module) -> None:
    # LLaVA reads the tower's hidden states. transformers 5 hooks them at the first call, under a
    # lock that cannot be compiled; 4.57 needs no hooks.
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return
    maybe_install_capturing_hooks(vision_tower)
