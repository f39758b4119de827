"""Guidance: what steers the HyperNetworks, and which positions of a row are its prompt.

The paper (arXiv 2403.13447, Sec. 3.4 and 3.5) steers the visual expert by the image's own features
and the language experts by a hidden state of the decoder. It does not say how guidance is scaled or
pooled; our readings are here: guidance is normalised without parameters at each position in fp32
before any pooling, and under scope "prompt" one vector a sample is pooled over its prompt.

Dimensions: B samples, L text positions, D width.
"""

from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# How the attention of servers is called that lay all requests into one row: vLLM's and SGLang's
# backends for transformers, and transformers' own continuous batching.
SERVER_ATTENTION = ("vllm", "sglang", "paged")

GUIDANCE_EPS = 1e-6

PROMPT_UNKNOWN = (
    "language_guidance_scope='prompt': no guidance_mask was given, so every attended position "
    "counts as the prompt. If the input holds an answer too, pass guidance_mask, 1 on the prompt, "
    "or the answer steers its own experts."
)


def normalize_guidance(features: torch.Tensor, eps: float = GUIDANCE_EPS) -> torch.Tensor:
    """Scale each position to unit root mean square: x / sqrt(mean(x^2) + eps), in fp32.

    Args:
        features: Hidden states, input embeddings or visual features (..., D).
        eps: Added to the mean square.

    Returns:
        torch.Tensor: Guidance (..., D) in fp32; gradient flows through.
    """
    features = features.float()
    return features * torch.rsqrt(features.pow(2).mean(-1, keepdim=True) + eps)


def pool_guidance(guidance: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool guidance over the marked positions of each row.

    Args:
        guidance: Normalised guidance (B, L, D).
        mask: Positions to pool (B, L), boolean.
        pooling: "mean" and "text" average (for "text" the mask has no image positions),
            "last" takes the last marked position.

    Returns:
        torch.Tensor: Pooled guidance (B, D); zero for a row without marked positions.
    """
    mask = mask.to(guidance.device)
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).amax(-1)  # (B,)
        mask = positions == last[:, None]
    # `where` rather than a product: a masked position may hold anything, NaN included.
    total = torch.where(mask[..., None], guidance, 0.0).sum(1)  # (B, D)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)


def prompt_before_labels(labels: torch.Tensor) -> torch.Tensor:
    """Mark the positions before the first supervised one.

    Position 0 has no prediction before it, so a label there starts no answer.

    Args:
        labels: Labels (B, L), -100 where nothing is supervised.

    Returns:
        torch.Tensor: Mask (B, L), boolean; all of a row that supervises nothing.
    """
    supervised = labels != -100
    supervised[:, 0] = False
    return supervised.cumsum(-1) == 0


def find_attended(
    attention_mask: Any, batch_size: int, length: int, device: Any
) -> torch.Tensor | None:
    """Read the attended positions of a fresh prompt off an attention mask.

    Args:
        attention_mask: None, a 2-D mask (B, >= L), or a prepared mask of another form.
        batch_size: B.
        length: L, positions of the prompt.
        device: Device of the result.

    Returns:
        torch.Tensor | None: Mask (B, L), boolean; None where the form does not tell.
    """
    if attention_mask is None:
        return torch.ones(batch_size, length, dtype=torch.bool, device=device)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask[:, :length].to(device).bool()
    return None


def raise_if_packed(
    attn_implementation: str | None,
    position_ids: torch.Tensor | None,
    attended: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """Refuse calls that lay several samples into one row: one expert a sample cannot serve them.

    Args:
        attn_implementation: The decoder's attention implementation.
        position_ids: Positions (1 or B, L), if the caller gave them.
        attended: Mask (B, L) of attended positions, where known.
        kwargs: The call's remaining keywords.

    Raises:
        ValueError: If the call is packed.
    """
    name = attn_implementation or ""
    found = None
    if name.startswith(SERVER_ATTENTION):
        found = f"attention implementation {name!r}"
    elif any(key.startswith("cu_seq_lens") and kwargs[key] is not None for key in kwargs):
        found = "cu_seq_lens_*"
    elif position_ids is not None and position_ids.ndim == 2 and not torch.compiler.is_compiling():
        if attended is None or attended.shape[1] != position_ids.shape[1]:
            attended = torch.ones_like(position_ids, dtype=torch.bool)
        # Positions of pads are arbitrary, so only attended ones count.
        positions = torch.where(attended.to(position_ids.device).bool(), position_ids, -1)
        highest = positions.cummax(-1).values  # (B, L)
        restarts = (positions[:, 1:] >= 0) & (positions[:, 1:] <= highest[:, :-1])
        if bool(restarts.any()):
            found = "position_ids that restart within a row"
    if found is not None:
        raise ValueError(
            f"Found {found}: several samples share one row, but language_guidance_scope='prompt' "
            "generates one language expert a row, from its prompt. Give one sample a row, as "
            "model.generate does, or use a checkpoint trained with "
            "language_guidance_scope='token'."
        )


def raise_if_shapes_differ(guidance_mask: torch.Tensor, expected: Any) -> None:
    """Refuse a mask that does not fit the prompt.

    Args:
        guidance_mask: The caller's mask.
        expected: (B, L) of the prompt.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(guidance_mask.shape) != tuple(expected):
        raise ValueError(
            f"guidance_mask: found shape {tuple(guidance_mask.shape)}, expected "
            f"{tuple(expected)}, one entry a position of the prompt."
        )


def build_prompt_mask(
    guidance_mask: torch.Tensor | None,
    attended: torch.Tensor | None,
    is_image: torch.Tensor | None,
    pooling: str,
) -> torch.Tensor:
    """Mark the positions over which scope "prompt" pools its guidance.

    Args:
        guidance_mask: The caller's prompt (B, L), or None for all positions.
        attended: Attended positions (B, L), None where unknown.
        is_image: Image positions (B, L), None where unknown.
        pooling: `language_guidance_pooling`.

    Returns:
        torch.Tensor: Mask (B, L), boolean.

    Raises:
        ValueError: If the positions cannot be told.
    """
    if guidance_mask is not None:
        mask = guidance_mask.bool()
        if attended is not None:
            mask = mask.to(attended.device) & attended
    elif attended is not None:
        mask = attended
        if not torch.compiler.is_compiling():
            logger.warning_once(PROMPT_UNKNOWN)
    else:
        raise ValueError(
            "Found an attention mask of a prepared form, from which the prompt cannot be read "
            "under language_guidance_scope='prompt'. Pass guidance_mask (batch, length), 1 on "
            "the prompt."
        )
    if pooling == "text" and is_image is not None:
        text = mask & ~is_image.to(mask.device)
        mask = torch.where(text.any(-1, keepdim=True), text, mask)
    if not torch.compiler.is_compiling() and not bool(mask.any(-1).all()):
        logger.warning_once(
            "language_guidance_scope='prompt': a row has an empty prompt; its guidance is 0. "
            "Check guidance_mask, labels and attention_mask."
        )
    return mask
