"""What an arm adds to LLaVA: parameters and floating-point operations, from shapes alone.

Operations count two for a multiplication with its addition, in matrix products only, for one
forward over one row; attention's products are those of a full causal square, as sdpa computes them.

D decoder width, D_v tower width, M code, R bottleneck (or LoRA's rank), L positions, P image ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUM_BLOCKS = 4
VISION_WIDTH = 192
INNER_RATIO = 3
HEAD_DIM = 32
VOCAB_SIZE = 512
# The row that operations are counted for: one question about one image.
ROW_POSITIONS, ROW_IMAGE_POSITIONS = 70, 16


def list_language_blocks(fields: Mapping[str, Any]) -> list[int]:
    """List the decoder blocks with a language expert.

    Args:
        fields: Expert fields of the configuration.

    Returns:
        Their indices.
    """
    half = NUM_BLOCKS // 2
    start = max(half, fields.get("language_guidance_layer") or 0)
    blocks = {
        "posterior": range(start, NUM_BLOCKS),
        "anterior": range(half),
        "all": range(NUM_BLOCKS),
        "none": range(0),
    }
    return list(blocks[fields.get("language_expert_layers", "posterior")])


def _list_sites(width: int, fields: Mapping[str, Any]) -> list[list[tuple[int, int, int]]]:
    """Experts by modality, each (guidance width, D_in, D_out)."""
    first, second = (VISION_WIDTH, VISION_WIDTH, width), (VISION_WIDTH, width, width)
    visual = {"first": [first], "second": [second], "both": [first, second], "none": []}
    language = [(width, width, width)] * len(list_language_blocks(fields))
    return [visual[fields.get("visual_expert", "first")], language]


def count_expert_parameters(width: int, fields: Mapping[str, Any]) -> int:
    """Count the parameters of all experts.

    Args:
        width: D.
        fields: Expert fields of the configuration; m, r and source must be among them.

    Returns:
        The number.
    """
    m, r, source = (
        fields[name] for name in ("expert_input_dim", "expert_hidden_dim", "expert_source")
    )
    total = 0
    for sites in _list_sites(width, fields):
        if sites and source != "static":
            total += m * m + m
            total += sum((m + 1) * r * (2 * d_in + d_out) for d_in, d_out in {s[1:] for s in sites})
        for guidance, d_in, d_out in sites:
            total += r * (2 * d_in + d_out)
            total += {"guided": m * guidance + m, "latent": m, "static": 0}[source]
    return total


def count_lora_parameters(width: int, rank: int) -> int:
    """Count LoRA's parameters on all seven linear layers of every block.

    Args:
        width: D.
        rank: LoRA's rank.

    Returns:
        The number.
    """
    inner = INNER_RATIO * width
    return NUM_BLOCKS * rank * (4 * 2 * width + 3 * (width + inner))


def count_base_operations(width: int, positions: int, image_positions: int) -> int:
    """Count the operations of LLaVA's projector and decoder.

    Args:
        width: D.
        positions: L.
        image_positions: P.

    Returns:
        The number.
    """
    projector = image_positions * (VISION_WIDTH * width + width * width)
    block = positions * (4 * width * width + 3 * width * INNER_RATIO * width)
    block += 2 * positions * positions * width
    return 2 * (projector + NUM_BLOCKS * block + positions * width * VOCAB_SIZE)


def count_added_operations(
    width: int,
    fields: Mapping[str, Any],
    lora_rank: int,
    positions: int = ROW_POSITIONS,
    image_positions: int = ROW_IMAGE_POSITIONS,
) -> int:
    """Count the operations that experts or LoRA add to a forward.

    Args:
        width: D.
        fields: Expert fields of the configuration.
        lora_rank: LoRA's rank, unmerged; 0 for none.
        positions: L.
        image_positions: P.

    Returns:
        The number.
    """
    m, r, source = (
        fields[name] for name in ("expert_input_dim", "expert_hidden_dim", "expert_source")
    )
    visual, language = _list_sites(width, fields)
    total = lora_rank and positions * count_lora_parameters(width, lora_rank)
    token = source == "guided" and fields.get("language_guidance_scope", "token") == "token"
    for sites, uses, by_position in (
        (visual, image_positions, False),
        (language, positions, token),
    ):
        for guidance, d_in, d_out in sites:
            size = r * (2 * d_in + d_out)
            codes = positions if by_position else 1
            if source != "static":
                total += codes * (m * m + (m * guidance if source == "guided" else 0))
            if by_position:
                # m + 1 products, and the contraction over the code.
                total += positions * ((m + 1) * size + m * 3 * r)
            else:
                total += uses * size + (m * size if source != "static" else 0)
    return 2 * total
