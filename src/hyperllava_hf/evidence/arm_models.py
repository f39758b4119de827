"""The models of the arms: one base a seed, to which each arm adds its experts.

All arms of a seed and width start from the same projector and decoder, and an expert module of one
name and shape starts from the same values in every arm that has it: each is initialised from the
seed and its own name, whatever else is there.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, set_seed

from ..checkpoints import get_bundled_checkpoint
from ..modeling import HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaProcessor
from ..training.digits_model import build_model_config, build_vision_config
from ..training.lora import DECODER_LINEARS
from ..training.stages import get_group
from .arms import NO_EXPERTS, Arm
from .cached_tower import CachedTower

TRAINED_GROUPS = {
    "align": ("projector", "visual_expert"),
    "full": ("projector", "visual_expert", "language_expert", "language_model"),
    "efficient": ("projector", "visual_expert", "language_expert"),
}


def load_tower() -> nn.Module:
    """Load the tower that every arm freezes: the bundled checkpoint's, trained in its stage 0.

    Returns:
        The tower, in evaluation mode.
    """
    model = HyperLlavaForConditionalGeneration.from_pretrained(get_bundled_checkpoint())
    tower: nn.Module = model.eval().model.vision_tower
    return tower


def load_processor() -> HyperLlavaProcessor:
    """Load the processor that goes with the tower.

    Returns:
        The processor.
    """
    return HyperLlavaProcessor.from_pretrained(get_bundled_checkpoint())


def _build_model(
    decoder: LlamaForCausalLM, fields: dict[str, Any], image_token_id: int
) -> HyperLlavaForConditionalGeneration:
    """Build a model with a cached tower; the decoder's weights are not copied."""
    config = build_model_config(build_vision_config(), decoder.config, image_token_id)
    config.update(fields)
    config.raise_if_invalid()
    model = HyperLlavaForConditionalGeneration(config)
    model.model.vision_tower = CachedTower()
    return model


def build_base(
    decoder_folder: Path, image_token_id: int, seed: int
) -> tuple[LlamaForCausalLM, dict[str, torch.Tensor]]:
    """Build the weights that all arms of a seed start from.

    Args:
        decoder_folder: Stage 0's decoder.
        image_token_id: Id of `<image>`.
        seed: The run's seed; decides the projector's initial values.

    Returns:
        The decoder, and the weights of a LLaVA without experts.
    """
    decoder = LlamaForCausalLM.from_pretrained(decoder_folder)
    decoder.config._name_or_path = ""
    set_seed(seed)
    base = _build_model(decoder, dict(NO_EXPERTS), image_token_id)
    base.model.language_model.load_state_dict(decoder.model.state_dict())
    base.lm_head.load_state_dict(decoder.lm_head.state_dict())
    return decoder, base.state_dict()


def initialize_experts(model: nn.Module, seed: int) -> None:
    """Give every expert module the initial values of its name.

    Args:
        model: A HyperLLaVA.
        seed: The run's seed.
    """
    for name, module in model.named_modules():
        if "_expert" in name and hasattr(module, "init_weights"):
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False
            torch.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            module.init_weights()


def build_arm_model(
    arm: Arm, decoder_folder: Path, image_token_id: int, seed: int
) -> HyperLlavaForConditionalGeneration:
    """Build an arm's model as it is before stage 1.

    Args:
        arm: The arm.
        decoder_folder: Stage 0's decoder, of the arm's width.
        image_token_id: Id of `<image>`.
        seed: The run's seed.

    Returns:
        The model, its experts fresh.
    """
    decoder, weights = build_base(decoder_folder, image_token_id, seed)
    model = _build_model(decoder, arm.expert_fields, image_token_id)
    initialize_experts(model, seed)
    result = model.load_state_dict(weights, strict=False)
    missing = [key for key in result.missing_keys if "_expert" not in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"found {missing[:3]} without weights and {result.unexpected_keys[:3]} without a "
            "place, expected the base of the arm's width; remove the stage-0 folder"
        )
    return model


def set_trained(model: nn.Module, phase: str) -> int:
    """Freeze and unfreeze a model's parameters.

    Args:
        model: The model.
        phase: "align", or the regime of stage 2.

    Returns:
        The number of trained parameters.
    """
    total = 0
    for name, parameter in model.named_parameters():
        trained = get_group(name) in TRAINED_GROUPS[phase] or "lora_" in name
        parameter.requires_grad_(trained)
        total += parameter.numel() * trained
    return total


def add_lora(model: Any, rank: int, seed: int) -> None:
    """Put LoRA on the LLM's linear layers, in place.

    Args:
        model: The model.
        rank: LoRA's rank; alpha is twice the rank, as in LLaVA's recipe, and there is no dropout,
            since no other arm has any.
        seed: The run's seed.
    """
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(zlib.crc32(f"{seed} lora".encode()))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=DECODER_LINEARS)
    inject_adapter_in_model(config, model)


def get_trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Give copies of the parameters that are trained just now.

    Args:
        model: The model.

    Returns:
        Tensors by name.
    """
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
