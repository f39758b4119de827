"""The inputs on which two models are compared: made by formula, the same in every run.

    image  t t t t t t t t <image> x P t ... t    one image of noise within CLIP's range
    text   t ... t                                the same kind of text, run apart

Text tokens are spread over the vocabulary and are never an image's placeholder.
"""

from dataclasses import dataclass
from typing import Any

import torch

NUM_BEFORE, NUM_AFTER = 8, 24
# Logits at image positions: enough to see every part of the image, few enough for a large head.
NUM_IMAGE_POSITIONS = 32


@dataclass(frozen=True)
class FixedRow:
    """One row of input.

    Attributes:
        name: "image" or "text".
        input_ids: token ids (1, L), -1 where the image's placeholder belongs.
        pixel_values: the image (1, channels, height, width), None without one.
        scored: positions whose logits are compared, in order.
    """

    name: str
    input_ids: torch.Tensor
    pixel_values: torch.Tensor | None
    scored: torch.Tensor

    @property
    def is_text(self) -> torch.Tensor:
        """Positions (L,) that hold text."""
        return self.input_ids[0] >= 0

    def get_model_inputs(self, image_token_id: int) -> dict[str, Any]:
        """Return what a model's forward takes.

        Args:
            image_token_id: the model's placeholder.

        Returns:
            Keyword arguments.
        """
        ids = torch.where(self.input_ids < 0, image_token_id, self.input_ids)
        images = {} if self.pixel_values is None else {"pixel_values": self.pixel_values}
        return {"input_ids": ids, "logits_to_keep": self.scored, "use_cache": False, **images}


def _spread_tokens(number: int, num_tokens: int, never: set[int]) -> list[int]:
    usable = [token for token in range(num_tokens) if token not in never]
    return [usable[(n * len(usable)) // number] for n in range(number)]


def count_patches(config: Any) -> int:
    """Count the positions that an image takes.

    Args:
        config: a LLaVA's configuration.

    Returns:
        The number of placeholders of one image.
    """
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches + (config.vision_feature_select_strategy == "full"))


def build_rows(config: Any, num_tokens: int, never: set[int]) -> list[FixedRow]:
    """Build the inputs.

    Args:
        config: the source's configuration.
        num_tokens: the first rows of the vocabulary, which both models have.
        never: ids that are no text for one of the models.

    Returns:
        The row with an image and the row of text.
    """
    vision, num_patches = config.vision_config, count_patches(config)
    tokens = _spread_tokens(NUM_BEFORE + NUM_AFTER, num_tokens, never)
    ids = [*tokens[:NUM_BEFORE], *[-1] * num_patches, *tokens[NUM_BEFORE:]]
    shape = (1, vision.num_channels, vision.image_size, vision.image_size)
    number = torch.arange(shape[1] * shape[2] * shape[3])
    # Steps of a prime through another give noise without a generator; CLIP's range is about +-2.
    pixels = ((number * 7919 % 4093).float() / 4093 * 4 - 2).reshape(shape)
    positions = torch.arange(len(ids))
    is_image = torch.tensor(ids) < 0
    step = max(1, num_patches // NUM_IMAGE_POSITIONS)
    scored = positions[~is_image | ((positions - NUM_BEFORE) % step == 0)]
    text = list(reversed(tokens))
    return [
        FixedRow("image", torch.tensor([ids]), pixels, scored),
        FixedRow("text", torch.tensor([text]), None, torch.arange(len(text))),
    ]
