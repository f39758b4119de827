"""Which images belong to which row of a batch, and candidate tokens that would stand for none."""

import functools
from typing import Any

import torch


def find_placeholders(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """Mark the positions that images are to take.

    Args:
        model: A HyperLLaVA, with its embeddings.
        prompt: Token ids (B, L), or embeddings (B, L, D) without images in them yet.

    Returns:
        torch.Tensor: Mask (B, L), boolean.
    """
    token = model.config.image_token_id
    if prompt.ndim == 2:
        return prompt == token
    placeholder = model.get_input_embeddings()(torch.full((), token, device=prompt.device))
    return (prompt == placeholder).all(-1)


def count_images(is_image: torch.Tensor, num_images: int) -> list[int]:
    """Count the images of each row by their placeholders.

    Args:
        is_image: Placeholders (B, L).
        num_images: N, images of all rows, each with as many placeholders.

    Returns:
        list[int]: Images of each row; one a row where placeholders do not tell.
    """
    placeholders = is_image.sum(-1)  # (B,)
    counts = (placeholders * num_images // placeholders.sum().clamp(min=1)).tolist()
    return counts if sum(counts) == num_images else [1] * num_images


def cut_candidates(generator: Any, image_token_id: int) -> Any:
    """Keep image placeholders out of the tokens that a candidate generator guesses.

    A guess copied from the prompt may hold placeholders, for which there is no image.

    Args:
        generator: transformers' candidate generator.
        image_token_id: The placeholder.

    Returns:
        Any: The generator; its guesses end before a placeholder.
    """
    guess = generator.get_candidates

    @functools.wraps(guess)
    def get_candidates(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found, scores = guess(input_ids, *args, **kwargs)
        length = input_ids.shape[1]
        is_image = (found[:, length:] == image_token_id).any(0).tolist()
        if True not in is_image:
            return found, scores
        kept = is_image.index(True)
        return found[:, : length + kept], None if scores is None else scores[:, :kept]

    generator.get_candidates = get_candidates
    return generator
