"""The miniature HyperLLaVA of the bundled checkpoint: its sizes, and its parts put together.

The same classes as at 7B. An image is 4 x 4 patches of 28 pixels, so a cell of a digit scene is
four patches: the tower reads glyphs, which are 8 x 8 pixels drawn large, from few but rich tokens,
and the decoder's time goes into questions rather than into image positions.
"""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from ..evaluation.digit_scenes import CANVAS_SIZE
from ..modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaImageProcessor, HyperLlavaProcessor
from .scene_tokenizer import MAX_LENGTH, VOCAB_SIZE, build_scene_tokenizer

PATCH_SIZE = 28
VISION_FEATURE_LAYER = -2


def build_vision_config() -> CLIPVisionConfig:
    """Build the tower's configuration.

    Returns:
        A CLIP vision tower for images of 112 x 112 pixels.
    """
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        projection_dim=192,
        image_size=CANVAS_SIZE,
        patch_size=PATCH_SIZE,
    )


def build_text_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Build the decoder's configuration.

    Args:
        tokenizer: Where the ids of the special tokens come from.

    Returns:
        A Llama of four blocks, so that two of them are posterior.
    """
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model_config(
    vision_config: CLIPVisionConfig, text_config: LlamaConfig, image_token_id: int
) -> HyperLlavaConfig:
    """Build the whole model's configuration: the design's defaults, with smaller experts.

    Args:
        vision_config: The tower's.
        text_config: The decoder's.
        image_token_id: Id of `<image>`.

    Returns:
        The configuration.
    """
    return HyperLlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_token_id,
        vision_feature_layer=VISION_FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        expert_input_dim=32,
        expert_hidden_dim=8,
        pad_token_id=text_config.pad_token_id,
        bos_token_id=text_config.bos_token_id,
        eos_token_id=text_config.eos_token_id,
        tie_word_embeddings=False,
    )


def build_digits_processor() -> HyperLlavaProcessor:
    """Build the processor: LLaVA's preprocessing at 112 pixels, and the scene tokenizer.

    Returns:
        The processor.
    """
    return HyperLlavaProcessor(
        image_processor=HyperLlavaImageProcessor(size=CANVAS_SIZE, crop_size=CANVAS_SIZE),
        tokenizer=build_scene_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
    )


def assemble_digits_model(
    tower: CLIPVisionModel, decoder: LlamaForCausalLM, image_token_id: int
) -> HyperLlavaForConditionalGeneration:
    """Put a trained tower and a trained decoder into a HyperLLaVA with fresh projector and experts.

    Args:
        tower: The vision tower.
        decoder: The decoder with its head.
        image_token_id: Id of `<image>`.

    Returns:
        The model, in evaluation mode.
    """
    for part in (tower, decoder):
        # Where a stage's folder lay is nobody's business who loads the result.
        part.config._name_or_path = ""
    config = build_model_config(tower.config, decoder.config, image_token_id)
    model = HyperLlavaForConditionalGeneration(config)
    # transformers 4.57 and HyperLLaVA nest the tower's transformer one level deeper than 5.x.
    target = model.model.vision_tower
    _copy_weights(getattr(tower, "vision_model", tower), getattr(target, "vision_model", target))
    _copy_weights(decoder.model, model.model.language_model)
    _copy_weights(decoder.lm_head, model.lm_head)
    return model.eval()


def _copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy every weight of `source`; what `target` has beyond them are expert weights."""
    result = target.load_state_dict(source.state_dict(), strict=False)
    missing = [key for key in result.missing_keys if "language_expert." not in key]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"found weights {result.unexpected_keys[:3]} without a place and no weights for "
            f"{missing[:3]}; expected those of the model that the configuration describes"
        )
