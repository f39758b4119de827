"""Scenes drawn as tensors, many at a time, for training.

Draws what `digit_scenes.draw_scene` draws (a test holds the two together), but a batch of scenes
in three matrix products, and from augmented glyphs of any resolution as well. Bicubic resampling
is separable: a box's pixels are A G A^T, with G the glyph and A the weights that Pillow itself
uses, read off by resizing an identity matrix.

Dimensions: B scenes, C = 4 cells, G rows of a glyph.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..evaluation.digit_scenes import (
    CANVAS_SIZE,
    CELL_SIZE,
    GLYPH_MAX_VALUE,
    INKS,
    PLACES,
    Description,
    get_ink_name,
    get_ink_rgb,
    load_glyphs,
)

NUM_CELLS = len(PLACES)
NO_DIGIT = 10
NO_INK = len(INKS)


@dataclass(frozen=True)
class SceneBatch:
    """What a batch of scenes holds, cell by cell in reading order.

    Attributes:
        samples: Sample number of each cell's glyph, int64 (B, C); -1 where the cell is empty.
        digits: Digit of each cell, int64 (B, C); `NO_DIGIT` where it is empty.
        inks: Index into `INKS` of each cell, int64 (B, C); `NO_INK` where it is empty.
        sizes: Box side in pixels, int64 (B, C); 0 where the cell is empty.
        offsets: Left and top of the box within the cell in pixels, int64 (B, C, 2).
        ink_colours: RGB from 0 to 255, float32 (B, C, 3).
        paper: RGB from 0 to 255, float32 (B, 3).
    """

    samples: torch.Tensor
    digits: torch.Tensor
    inks: torch.Tensor
    sizes: torch.Tensor
    offsets: torch.Tensor
    ink_colours: torch.Tensor
    paper: torch.Tensor


def build_scene_batch(descriptions: Sequence[Description]) -> SceneBatch:
    """Put descriptions into tensors.

    Args:
        descriptions: Scenes as `sample_scene` gives them; each box lies within its cell.

    Returns:
        The tensors, with B = len(descriptions).
    """
    shape = (len(descriptions), NUM_CELLS)
    samples = np.full(shape, -1, dtype=np.int64)
    digits = np.full(shape, NO_DIGIT, dtype=np.int64)
    inks = np.full(shape, NO_INK, dtype=np.int64)
    sizes = np.zeros(shape, dtype=np.int64)
    offsets = np.zeros((*shape, 2), dtype=np.int64)
    colours = np.zeros((*shape, 3), dtype=np.float32)
    names = list(INKS)
    for row, description in enumerate(descriptions):
        for entry in description["digits"]:
            cell = PLACES.index(entry["place"])
            left, top, right, _ = entry["box"]
            samples[row, cell] = entry["sample"]
            digits[row, cell] = entry["digit"]
            inks[row, cell] = names.index(get_ink_name(entry["ink"]))
            sizes[row, cell] = right - left
            offsets[row, cell] = (left - cell % 2 * CELL_SIZE, top - cell // 2 * CELL_SIZE)
            colours[row, cell] = get_ink_rgb(entry["ink"])
    paper = np.array([description["paper"] for description in descriptions], dtype=np.float32)
    arrays = (samples, digits, inks, sizes, offsets, colours, paper)
    return SceneBatch(*(torch.from_numpy(array) for array in arrays))


@functools.cache
def get_resize_matrix(glyph_size: int, size: int) -> torch.Tensor:
    """Give Pillow's bicubic weights from a glyph's side to a box's side.

    Args:
        glyph_size: Rows of the glyph, G.
        size: Side of the box in pixels.

    Returns:
        Weights, float32 of shape (size, G).
    """
    identity = Image.fromarray(np.eye(glyph_size, dtype=np.float32))
    return torch.from_numpy(np.array(identity.resize((glyph_size, size), Image.Resampling.BICUBIC)))


@functools.cache
def _build_cell_matrices(glyph_size: int) -> torch.Tensor:
    """Resize-and-place weights for every (size, offset): (cell, cell, cell, G), zero elsewhere."""
    matrices = torch.zeros(CELL_SIZE + 1, CELL_SIZE, CELL_SIZE, glyph_size)
    for size in range(1, CELL_SIZE + 1):
        weights = get_resize_matrix(glyph_size, size)
        for offset in range(CELL_SIZE - size + 1):
            matrices[size, offset, offset : offset + size] = weights
    return matrices


def draw_scene_batch(batch: SceneBatch, glyphs: torch.Tensor | None = None) -> torch.Tensor:
    """Draw a batch of scenes.

    Args:
        batch: The scenes.
        glyphs: Ink coverage from 0 to 1 for each cell, float of shape (B, C, G, G), read where
            the cell is filled; the scenes' own glyphs when None.

    Returns:
        Whole RGB values from 0 to 255, float32 of shape (B, 3, 112, 112).
    """
    filled = batch.samples >= 0
    if glyphs is None:
        values = torch.tensor(load_glyphs()[0][batch.samples.clamp_min(0).numpy()])
        glyphs = values.float() / GLYPH_MAX_VALUE
    num_scenes, size = filled.shape[0], glyphs.shape[-1]
    matrices = _build_cell_matrices(size)
    columns = matrices[batch.sizes, batch.offsets[..., 0]]  # (B, C, cell, G)
    rows = matrices[batch.sizes, batch.offsets[..., 1]]  # (B, C, cell, G)
    alpha = (rows @ glyphs @ columns.transpose(-1, -2)).clamp(0.0, 1.0)  # (B, C, cell, cell)
    alpha = (alpha * filled[..., None, None]).unsqueeze(2)  # (B, C, 1, cell, cell)
    paper = batch.paper.view(num_scenes, 1, 3, 1, 1)
    cells = paper * (1.0 - alpha) + batch.ink_colours[..., None, None] * alpha
    grid = cells.view(num_scenes, 2, 2, 3, CELL_SIZE, CELL_SIZE).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(num_scenes, 3, CANVAS_SIZE, CANVAS_SIZE).round()
