"""A vision tower that hands out features computed before, in place of one that reads pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..training.digits_model import VISION_FEATURE_LAYER


class CachedTower(nn.Module):
    """Stands where the tower stands; its `pixel_values` are features.

    The model's own path stays as it is: it takes hidden state -2 and drops the first position.
    """

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return features in the form of a tower's output.

        Args:
            pixel_values: Features (N, P, D_v).
            **kwargs: What a tower is asked for; not read.

        Returns:
            Hidden states of shape (N, 1 + P, D_v).
        """
        states = F.pad(pixel_values, (0, 0, 1, 0))  # (N, 1 + P, D_v)
        return BaseModelOutputWithPooling(
            last_hidden_state=states, hidden_states=(states,) * -VISION_FEATURE_LAYER
        )


@torch.no_grad()
def read_features(tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Read images with a frozen tower, as LLaVA does.

    Args:
        tower: A CLIP vision tower.
        pixel_values: Normalised images (N, 3, height, width).

    Returns:
        Features (N, P, D_v).
    """
    states = tower(pixel_values, output_hidden_states=True).hidden_states
    features: torch.Tensor = states[VISION_FEATURE_LAYER][:, 1:]
    return features
