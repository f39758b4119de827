"""The reader through which stage 0 supervises the tower: what every patch says about its cell.

Every patch names the digit, the ink and the place of the cell it lies in, from the hidden state
that LLaVA reads; and the patches of a cell name its digit together, by the mean of what they say.

Dimensions: B scenes, P patches, C = 4 cells, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from .scene_tensors import NO_DIGIT, NO_INK, NUM_CELLS

LABEL_SMOOTHING = 0.1
PLACE_LOSS_WEIGHT = 0.2


def list_patches_by_cell(num_rows: int) -> torch.Tensor:
    """List the patches that lie in each cell.

    Args:
        num_rows: Rows of patches, an even number.

    Returns:
        Patch numbers in reading order, shape (C, P / C).
    """
    numbers = torch.arange(num_rows**2).view(2, num_rows // 2, 2, num_rows // 2)
    return numbers.permute(0, 2, 1, 3).reshape(NUM_CELLS, -1)


class SceneReader(nn.Module):
    """A tower with the head that stage 0 trains it through.

    Args:
        tower: The tower.
        feature_layer: The negative index of the hidden state that is read.
    """

    def __init__(self, tower: CLIPVisionModel, feature_layer: int = -2) -> None:
        super().__init__()
        self.tower = tower
        self.feature_layer = feature_layer
        self.sizes = [NO_DIGIT + 1, NO_INK + 1, NUM_CELLS]
        width = tower.config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        patches = list_patches_by_cell(tower.config.image_size // tower.config.patch_size)
        self.register_buffer("patches", patches, persistent=False)

    def read(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read every patch.

        Args:
            pixel_values: Normalised images (B, 3, height, width).

        Returns:
            Logits of digit, ink and place, each of shape (B, C, P / C, classes).
        """
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        features = states[self.feature_layer][:, 1:]  # (B, P, D)
        logits = self.head(features)[:, self.patches]  # (B, C, P / C, classes)
        digit, ink, place = logits.split(self.sizes, dim=-1)
        return digit, ink, place

    def forward(
        self, pixel_values: torch.Tensor, digits: torch.Tensor, inks: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            pixel_values: Normalised images (B, 3, height, width).
            digits: Digit of each cell (B, C); `NO_DIGIT` where it is empty.
            inks: Ink of each cell (B, C); `NO_INK` where it is empty.

        Returns:
            `loss`, a scalar.
        """
        digit, ink, place = self.read(pixel_values)
        shape = digit.shape[:3]
        target = F.one_hot(digits, NO_DIGIT + 1).float()
        smooth = (1.0 - LABEL_SMOOTHING) * target
        smooth[..., :NO_DIGIT] += LABEL_SMOOTHING / NO_DIGIT
        target = torch.where((digits == NO_DIGIT)[..., None], target, smooth)  # (B, C, 11)
        cell = digit.softmax(-1).mean(2).clamp_min(1e-6).log()  # (B, C, 11)
        loss = -(digit.log_softmax(-1) * target[:, :, None]).sum(-1).mean()
        loss = loss - (cell * target).sum(-1).mean()
        every_ink = inks[:, :, None].expand(shape)
        every_place = torch.arange(NUM_CELLS)[None, :, None].expand(shape)
        loss = loss + F.cross_entropy(ink.flatten(0, 2), every_ink.flatten())
        places = F.cross_entropy(place.flatten(0, 2), every_place.flatten())
        return {"loss": loss + PLACE_LOSS_WEIGHT * places}
