"""The batched drawer draws what the public one draws; augmentation stays legible and random."""

import numpy as np
import pytest
import torch

from hyperllava_hf.evaluation.digit_scenes import (
    INKS,
    PLACES,
    draw_scene,
    get_ink_name,
    load_glyphs,
    sample_scene,
)
from hyperllava_hf.training.glyph_augmentation import augment_glyphs
from hyperllava_hf.training.scene_tensors import (
    NO_DIGIT,
    NO_INK,
    build_scene_batch,
    draw_scene_batch,
    get_resize_matrix,
)


def test_batch_agrees_with_the_public_drawer() -> None:
    scenes = [sample_scene(seed) for seed in range(40)]
    drawn = draw_scene_batch(build_scene_batch(scenes))
    expected = np.stack([np.asarray(draw_scene(scene)) for scene in scenes]).astype(np.float32)
    difference = (drawn - torch.from_numpy(expected).permute(0, 3, 1, 2)).abs()
    # Summed in another order, a value may round the other way.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_batch_holds_what_the_descriptions_say() -> None:
    scenes = [sample_scene(seed) for seed in range(20)]
    batch = build_scene_batch(scenes)
    for row, scene in enumerate(scenes):
        found = {entry["place"]: entry for entry in scene["digits"]}
        for cell, place in enumerate(PLACES):
            digit, ink = int(batch.digits[row, cell]), int(batch.inks[row, cell])
            if place in found:
                assert digit == found[place]["digit"]
                assert list(INKS)[ink] == get_ink_name(found[place]["ink"])
            else:
                assert (digit, ink) == (NO_DIGIT, NO_INK)


@pytest.mark.parametrize("glyph_size", [8, 16])
def test_resize_weights_sum_to_one(glyph_size: int) -> None:
    weights = get_resize_matrix(glyph_size, 41)
    assert weights.shape == (41, glyph_size)
    assert torch.allclose(weights.sum(1), torch.ones(41), atol=1e-6)


def test_augmentation_is_random_by_its_generator_and_stays_a_glyph() -> None:
    glyphs = torch.from_numpy(load_glyphs()[0][:64].astype(np.float32)) / 16
    first, again = (augment_glyphs(glyphs, torch.Generator().manual_seed(3)) for _ in range(2))
    other = augment_glyphs(glyphs, torch.Generator().manual_seed(4))
    assert first.shape == (64, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    # Ink is neither lost nor made up: the mean coverage moves, but not far.
    ratio = first.mean((1, 2)) / glyphs.mean((1, 2))
    assert 0.5 < ratio.min()
    assert ratio.max() < 1.8
