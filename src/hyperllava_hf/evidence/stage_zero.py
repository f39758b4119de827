"""Stage 0 of the evidence: decoders that know the language of scenes, from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from ..processing import HyperLlavaProcessor
from ..training.decoder_stage import build_decoder, build_text_collator
from ..training.digits_model import build_text_config
from ..training.digits_recipe import DigitsRecipe
from ..training.trainer_runs import RunSettings, run_training
from .costs import HEAD_DIM, INNER_RATIO


def build_decoder_config(processor: HyperLlavaProcessor, width: int) -> Any:
    """Build the configuration of a decoder: the bundled checkpoint's at another width.

    Args:
        processor: The processor, for its special tokens.
        width: D, a multiple of 32.

    Returns:
        The configuration.
    """
    config = build_text_config(processor.tokenizer)
    heads = width // HEAD_DIM
    config.update(
        {
            "hidden_size": width,
            "intermediate_size": INNER_RATIO * width,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": HEAD_DIM,
        }
    )
    return config


def train_decoder(
    processor: HyperLlavaProcessor, width: int, settings: RunSettings, folder: Path
) -> dict[str, Any]:
    """Train and save a decoder.

    Args:
        processor: The processor.
        width: D.
        settings: The stage's settings.
        folder: Where the decoder is written.

    Returns:
        The stage's record.
    """
    set_seed(settings.seed)
    decoder = build_decoder(build_decoder_config(processor, width))
    collate = build_text_collator(processor, DigitsRecipe().num_text_turns)
    log = run_training(decoder, collate, settings, folder)
    decoder.save_pretrained(folder)
    return {"log": log}
