"""LLaVA's projector with the visual expert (arXiv 2403.13447, Sec. 3.4, Eq. 6).

    first   V = L2(L1(f_V) + E_V1(f_V))
    second  V = L2(L1(f_V)) + E_V2(L1(f_V))
    both    V = L2(L1(f_V) + E_V1(f_V)) + E_V2(L1(f_V))

L1 is `linear_1`; L2 is the GELU, then `linear_2` (our reading: the expert shifts L1's parameters,
so it acts before the nonlinearity). Guidance in all three: the image's own f_V, normalised and
averaged over its patches, so there is one generated expert an image.

Dimensions: N images, P patches, D_v vision width, D text width.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .experts_hyperllava import Expert, HyperNetwork, apply_expert
from .guidance_hyperllava import normalize_guidance


class VisualExpert(nn.Module):
    """The experts of the projector and the HyperNetwork that they share.

    Args:
        config: `HyperLlavaConfig`.
    """

    apply_expert = staticmethod(apply_expert)

    def __init__(self, config: Any) -> None:
        super().__init__()
        features_dim, text_dim = config.num_vision_features, config.text_config.hidden_size
        shapes = {"first": (features_dim, text_dim), "second": (text_dim, text_dim)}
        sites = ("first", "second") if config.visual_expert == "both" else (config.visual_expert,)
        distinct = list(dict.fromkeys(shapes[site] for site in sites))
        self.heads = {site: distinct.index(shapes[site]) for site in sites}
        dims = (config.expert_input_dim, config.expert_hidden_dim)
        self.hypernetwork: Any = None
        if config.expert_source != "static":
            self.hypernetwork = HyperNetwork(distinct, *dims)
        self.first, self.second = (
            Expert(config.expert_source, features_dim, *shapes[site], *dims)
            if site in sites
            else None
            for site in ("first", "second")
        )

    def forward(
        self, site: str, hidden_states: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        """Compute the update of one expert.

        Args:
            site: "first" or "second".
            hidden_states: The expert's input (N, P, D_in).
            guidance: One vector an image (N, D_v), fp32.

        Returns:
            torch.Tensor: The update (N, P, D).
        """
        shared = () if self.hypernetwork is None else self.hypernetwork(self.heads[site])
        weights = getattr(self, site)(hidden_states.dtype, guidance, *shared)
        return self.apply_expert(hidden_states, *weights)


class HyperLlavaMultiModalProjector(LlavaMultiModalProjector):
    """The projector; without its expert it is LLaVA's, bit for bit.

    Args:
        config: `HyperLlavaConfig`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.has_first = config.visual_expert in ("first", "both")
        self.has_second = config.visual_expert in ("second", "both")
        self.visual_expert = None if config.visual_expert == "none" else VisualExpert(config)
        self.experts_enabled = True

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Project visual features into the decoder's embedding space.

        Args:
            image_features: f_V (N, P, D_v).

        Returns:
            torch.Tensor: V (N, P, D).
        """
        if self.visual_expert is None or not self.experts_enabled:
            return super().forward(image_features)
        guidance = normalize_guidance(image_features).mean(-2)  # (N, D_v)
        projected = self.linear_1(image_features)
        shifted = projected
        if self.has_first:
            # A device map may place the expert and the linear layers apart.
            update = self.visual_expert("first", image_features, guidance)
            shifted = projected + update.to(projected.device)
        hidden_states = self.linear_2(self.act(shifted))
        if self.has_second:
            update = self.visual_expert("second", projected, guidance)
            hidden_states = hidden_states + update.to(hidden_states.device)
        return hidden_states
