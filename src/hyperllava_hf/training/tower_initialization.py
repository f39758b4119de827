"""Initial values of a small CLIP tower, with which it learns from little data in little time.

A ViT of this size otherwise stays at chance for most of the time it has. Two values matter:
positions start as sines and cosines of row and column, as large as the patches' contents, where
CLIP's own are too small beside them to be seen; and patch filters start without most of their
response to plain paper, which is most of a patch's energy and says nothing.

Blocks that LLaVA does not read stay the identity.

Dimensions: P patches, D width.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

PAPER_RESPONSE = 0.1


def build_tower(config: CLIPVisionConfig, feature_layer: int = -2) -> CLIPVisionModel:
    """Build a tower with the initial values that let it learn quickly.

    Args:
        config: The tower's configuration; the width is a multiple of 4.
        feature_layer: The negative index of the hidden state that is read; blocks above it are
            the identity.

    Returns:
        The tower.
    """
    tower = CLIPVisionModel(config)
    vision = getattr(tower, "vision_model", tower)
    rows = config.image_size // config.patch_size
    with torch.no_grad():
        filters = vision.embeddings.patch_embedding.weight  # (D, 3, patch, patch)
        nn.init.trunc_normal_(filters, std=0.02)
        filters -= filters.mean(dim=(2, 3), keepdim=True) * (1.0 - PAPER_RESPONSE)
        positions = vision.embeddings.position_embedding.weight  # (1 + P, D), CLS first
        positions[1:] = build_position_table(rows, config.hidden_size)
        for block in vision.encoder.layers[feature_layer + 1 :]:
            for linear in (block.self_attn.out_proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            block.requires_grad_(False)
    return tower


def build_position_table(num_rows: int, width: int) -> torch.Tensor:
    """Build sines and cosines of row and column, with unit root mean square.

    Args:
        num_rows: Rows of patches, as many as columns.
        width: Numbers a patch, a multiple of 4.

    Returns:
        Shape (num_rows ** 2, width), patches in reading order.
    """
    # Wavelengths from the image's double down to four patches.
    frequencies = math.pi / num_rows * (num_rows / 2) ** torch.linspace(0.0, 1.0, width // 4)
    angles = torch.arange(num_rows)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1) * math.sqrt(2.0)  # (rows, width / 2)
    by_row = axis[:, None].expand(num_rows, num_rows, -1)
    by_column = axis[None].expand(num_rows, num_rows, -1)
    return torch.cat([by_row, by_column], dim=2).reshape(num_rows**2, width)
