"""The paper's two stages on digit scenes: the rows of each, as the processor makes them.

Stage 1 (align) shows an image and its description in the `plain` form; stage 2 (instruct) holds
conversations of many questions about one image in the `vicuna_v1` form. Glyphs are augmented in
both, so that the tower's features are as uncertain about them as about unseen handwriting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ..evaluation.digit_scenes import Description
from ..modeling import HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaProcessor
from .scene_conversations import (
    BROAD,
    Message,
    Mix,
    build_caption,
    build_messages,
    sample_turns,
)
from .scene_tensors import build_scene_batch, draw_scene_batch
from .stages import set_trainable
from .tower_stage import augment_scene_glyphs
from .trainer_runs import RunSettings, run_training

TEMPLATES = {"align": "plain", "instruct": "vicuna_v1"}


def draw_training_images(
    scenes: list[Description], generator: torch.Generator
) -> list[Image.Image]:
    """Draw scenes with augmented glyphs.

    Args:
        scenes: The scenes.
        generator: Where the randomness comes from.

    Returns:
        One RGB image of 112 x 112 pixels a scene.
    """
    batch = build_scene_batch(scenes)
    pixels = draw_scene_batch(batch, augment_scene_glyphs(batch, generator))
    arrays = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()  # (scenes, 112, 112, 3)
    return [Image.fromarray(array) for array in arrays]


def build_image_collator(
    processor: HyperLlavaProcessor,
    stage: str,
    num_turns: int = 1,
    mix: Mix = BROAD,
    split: str = "train",
) -> Callable[[list[int]], dict[str, torch.Tensor]]:
    """Build the collator of a stage.

    Args:
        processor: The processor.
        stage: "align" or "instruct".
        num_turns: Questions a conversation; read by "instruct".
        mix: What the rows are about.
        split: The split whose handwriting is used.

    Returns:
        A function from seeds to the model's arguments, labels on answers alone.
    """

    def build_conversation(seed: int, scene: Description) -> list[Message]:
        if stage == "align":
            return build_caption(scene)
        return build_messages(sample_turns(seed, scene, num_turns, mix), with_image=True)

    def collate(seeds: list[int]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seeds[0])
        scenes = [mix.sample_scene(seed, split) for seed in seeds]
        encoded = processor.apply_chat_template(
            [build_conversation(seed, scene) for seed, scene in zip(seeds, scenes, strict=True)],
            chat_template=TEMPLATES[stage],
            images=[[image] for image in draw_training_images(scenes, generator)],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_labels=True,
            padding=True,
        )
        return dict(encoded)

    return collate


def run_stage(
    model: HyperLlavaForConditionalGeneration,
    processor: HyperLlavaProcessor,
    stage: str,
    settings: RunSettings,
    folder: Path,
    num_turns: int = 1,
    mix: Mix = BROAD,
    split: str = "train",
) -> list[dict[str, float]]:
    """Train a stage in place.

    Args:
        model: The model.
        processor: The processor.
        stage: "align" or "instruct".
        settings: The stage's settings.
        folder: Where the Trainer may write.
        num_turns: Questions a conversation; read by "instruct".
        mix: What the rows are about.
        split: The split whose handwriting is used.

    Returns:
        The training log.
    """
    set_trainable(model, stage)
    collate = build_image_collator(processor, stage, num_turns, mix, split)
    return run_training(model, collate, settings, folder)
