"""Stage 0, tower: a small CLIP vision tower learns to read scenes, patch by patch.

No pretrained CLIP of this size exists, so the tower is trained with supervision before LLaVA's own
stages begin. The supervision sits where LLaVA reads its features, at the patches' hidden states
before the last block (`scene_reader`). The reader on top is thrown away afterwards; answers come
from the language model alone.

Dimensions: B scenes, C = 4 cells.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ..evaluation.digit_scenes import GLYPH_MAX_VALUE, PLACES, load_glyphs, sample_scene
from ..processing.image_processing_hyperllava import CLIP_MEAN, CLIP_STD
from .glyph_augmentation import AUGMENTED_SIZE, augment_glyphs
from .scene_reader import SceneReader
from .scene_tensors import SceneBatch, build_scene_batch, draw_scene_batch

# Of the scenes that the tower sees, so many have all cells filled: more glyphs an image.
FULL_SCENES = 0.85
AVERAGE_DECAY = 0.998


class WeightAverage(TrainerCallback):
    """Keep a moving average of a model's parameters, which generalises better than the last ones.

    Args:
        model: The model that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.average = copy.deepcopy(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the parameters; quickly at first, to forget the initial ones."""
        weight = 1.0 - min(AVERAGE_DECAY, state.global_step / (state.global_step + 20.0))
        with torch.no_grad():
            averages, parameters = self.average.parameters(), self.model.parameters()
            torch._foreach_lerp_(list(averages), list(parameters), weight)


def normalize_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise images as the processor does.

    Args:
        pixels: RGB from 0 to 255, shape (B, 3, height, width).

    Returns:
        Normalised images of the same shape.
    """
    mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (pixels / 255.0 - mean) / std


def augment_scene_glyphs(batch: SceneBatch, generator: torch.Generator) -> torch.Tensor:
    """Augment the glyphs of a batch of scenes.

    Args:
        batch: The scenes.
        generator: Where the randomness comes from.

    Returns:
        Ink coverage (B, C, 16, 16) for `draw_scene_batch`.
    """
    values = torch.tensor(load_glyphs()[0][batch.samples.clamp_min(0).flatten().numpy()])
    glyphs = augment_glyphs(values.float() / GLYPH_MAX_VALUE, generator)
    return glyphs.view(*batch.samples.shape, AUGMENTED_SIZE, AUGMENTED_SIZE)


def collate_scenes(seeds: list[int], split: str = "train") -> dict[str, torch.Tensor]:
    """Draw a batch of augmented scenes for the tower.

    Args:
        seeds: One a scene.
        split: The split whose handwriting is used.

    Returns:
        The arguments of `SceneReader.forward`.
    """
    generator = torch.Generator().manual_seed(seeds[0])
    scenes = []
    for seed in seeds:
        is_full = torch.rand((), generator=generator).item() < FULL_SCENES
        scenes.append(sample_scene(seed, split, num_digits=len(PLACES) if is_full else None))
    batch = build_scene_batch(scenes)
    pixels = draw_scene_batch(batch, augment_scene_glyphs(batch, generator))
    return {
        "pixel_values": normalize_pixels(pixels),
        "digits": batch.digits,
        "inks": batch.inks,
    }


@torch.no_grad()
def measure_reading(reader: SceneReader, split: str, num_scenes: int = 500) -> dict[str, float]:
    """Measure how well a tower and its head read scenes as they are, without augmentation.

    Args:
        reader: The tower and its head.
        split: The split whose handwriting is used.
        num_scenes: How many scenes, all cells filled.

    Returns:
        Accuracy of digit and ink over cells, and of the digit over single patches.
    """
    scenes = [sample_scene(-1 - i, split, num_digits=len(PLACES)) for i in range(num_scenes)]
    batch = build_scene_batch(scenes)
    digit, ink, _ = reader.eval().read(normalize_pixels(draw_scene_batch(batch)))
    by_patch = digit.argmax(-1) == batch.digits[:, :, None]
    by_cell = digit.softmax(-1).mean(2).argmax(-1) == batch.digits
    ink_by_cell = ink.softmax(-1).mean(2).argmax(-1) == batch.inks
    correct = {"digit": by_cell, "ink": ink_by_cell, "digit_by_patch": by_patch}
    return {name: hits.float().mean().item() for name, hits in correct.items()}
