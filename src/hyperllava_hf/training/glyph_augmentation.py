"""Augmentation of handwritten glyphs, for training only: small affine maps and stroke weight.

Validation and test scenes are drawn from the 8 x 8 glyphs as they are. In training a glyph is
first resampled to 16 x 16 through a random affine map with a smooth random displacement on top,
then its strokes are made bolder or lighter; the scene drawer upsamples either size to the box.

Dimensions: B glyphs.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

AUGMENTED_SIZE = 16
MAX_ROTATION = math.radians(14.0)
MAX_SHEAR = 0.22
MAX_SCALE = 0.16
MAX_SHIFT = 0.12
MAX_BEND = 0.09
MAX_STROKE_GAMMA = 1.9


def augment_glyphs(glyphs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one random variant of each glyph.

    Args:
        glyphs: Ink coverage from 0 to 1, float of shape (B, 8, 8).
        generator: Where the randomness comes from.

    Returns:
        Ink coverage from 0 to 1, shape (B, 16, 16).
    """
    batch = glyphs.shape[0]

    def uniform(bound: float, *shape: int) -> torch.Tensor:
        return (torch.rand(batch, *shape, generator=generator) * 2.0 - 1.0) * bound

    angle, shear = uniform(MAX_ROTATION), uniform(MAX_SHEAR)
    scale = torch.exp(uniform(MAX_SCALE, 2))
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=1).view(batch, 2, 2)
    slant = torch.eye(2).repeat(batch, 1, 1)
    slant[:, 0, 1] = shear
    linear = rotation @ slant * scale[:, None, :]  # (B, 2, 2)
    theta = torch.cat([linear, uniform(MAX_SHIFT, 2, 1)], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(
        theta, [batch, 1, AUGMENTED_SIZE, AUGMENTED_SIZE], align_corners=False
    )  # (B, 16, 16, 2)
    bend = F.interpolate(
        uniform(MAX_BEND, 2, 4, 4), size=AUGMENTED_SIZE, mode="bicubic", align_corners=True
    )  # (B, 2, 16, 16)
    grid = grid + bend.permute(0, 2, 3, 1)
    warped = F.grid_sample(glyphs[:, None], grid, mode="bicubic", align_corners=False)[:, 0]
    # Coverage is a blurred step: a power moves the step outwards (bolder) or inwards (lighter).
    gamma = torch.exp(uniform(math.log(MAX_STROKE_GAMMA), 1, 1))
    gain = 1.0 + uniform(0.15, 1, 1)
    return (warped.clamp(0.0, 1.0) ** gamma * gain).clamp(0.0, 1.0)  # (B, 16, 16)
