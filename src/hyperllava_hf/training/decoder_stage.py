"""Stage 0, decoder: a small Llama learns the language of scenes from text alone.

No language model of this size knows what counting is, so the decoder is trained before LLaVA's
own stages begin, on conversations in which sixteen words stand where the sixteen patches of an
image will stand: it learns to answer, to count and to describe, and stage 1 and 2 are left with
what they are for, to see.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..evaluation.digit_questions import describe_scene
from ..processing import HyperLlavaProcessor
from .scene_conversations import (
    build_messages,
    build_text_turns,
    sample_training_scene,
    word_patches,
)

IGNORED_LABEL = -100
# Of the rows, so many are a scene and its description and nothing else, as in stage 1.
CAPTION_ROWS = 0.2


def build_decoder(config: LlamaConfig) -> LlamaForCausalLM:
    """Build the decoder with transformers' initial values.

    Args:
        config: The decoder's configuration.

    Returns:
        The decoder.
    """
    return LlamaForCausalLM(config)


def build_text_collator(
    processor: HyperLlavaProcessor, num_turns: int
) -> Callable[[list[int]], dict[str, torch.Tensor]]:
    """Build the collator of text-only rows.

    Args:
        processor: The processor, for its tokenizer and templates.
        num_turns: Questions a conversation.

    Returns:
        A function from seeds to `input_ids`, `attention_mask` and `labels`, padded on the right.
    """

    def collate(seeds: list[int]) -> dict[str, torch.Tensor]:
        rows = [_build_row(processor, seed, num_turns) for seed in seeds]
        length = max(len(row["input_ids"]) for row in rows)
        fill = {
            "input_ids": processor.tokenizer.pad_token_id,
            "attention_mask": 0,
            "labels": IGNORED_LABEL,
        }
        return {
            name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
            for name, value in fill.items()
        }

    return collate


def _build_row(processor: HyperLlavaProcessor, seed: int, num_turns: int) -> dict[str, list[int]]:
    scene = sample_training_scene(seed)
    rng = random.Random(f"row {seed}")
    if rng.random() < CAPTION_ROWS:
        tokenizer = processor.tokenizer
        prompt = tokenizer(word_patches(scene)).input_ids
        caption = tokenizer(f"{describe_scene(scene)}\n", add_special_tokens=False).input_ids
        return {
            "input_ids": prompt + caption,
            "attention_mask": [1] * len(prompt + caption),
            "labels": [IGNORED_LABEL] * len(prompt) + caption,
        }
    messages = build_messages(build_text_turns(seed, scene, num_turns), with_image=False)
    encoded: dict[str, Any] = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_labels=True
    )
    names = ("input_ids", "attention_mask", "labels")
    # A conversation that is not in a list may come back as a batch of one.
    rows = {name: encoded[name] for name in names}
    return {name: row[0] if isinstance(row[0], list) else row for name, row in rows.items()}
