"""Which key of each layout is which key of ours, as tables: a layout is a table, not a function.

A row says: a key that the pattern matches as a whole becomes the target, or is dropped for a
reason. Each key matches exactly one row of its table; the order of the rows means nothing. The
first group of tables reads a layout into our names; the second writes our names into a layout.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

NUM_NAMED = 5


class Row(NamedTuple):
    """One row of a table: what becomes of the keys that a pattern matches.

    Attributes:
        pattern: regular expression for a whole key.
        target: the new key, with the pattern's groups; None drops the key.
        reason: why it is dropped.
        operations: what is done to the tensor: "transpose", "reshape: 3, 4".
    """

    pattern: str
    target: str | None
    reason: str = ""
    operations: tuple[str, ...] = ()


# A decoder's parameters, without what a HyperLLaVA adds to its blocks.
DECODER = r"(embed_tokens|norm|layers\.\d+\.(?!language_expert\.|self_attn\.rotary_emb\.).+?)"
COMPUTED = "it is computed from rope_theta"
DECODER_OF_LLM = (
    Row(rf"model\.{DECODER}\.(weight|bias)", r"model.language_model.\1.\2"),
    Row(r"lm_head\.weight", "lm_head.weight"),
    Row(r"model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", None, COMPUTED),
)
TOWER = r"((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+?)"
POSITION_IDS = "positions are counted, not stored"
PROJECTOR_OF_LLAVA = (
    Row(
        r"(?:[\w.]+\.)?mm_projector\.0\.(weight|bias)",
        r"model.multi_modal_projector.linear_1.\1",
    ),
    Row(
        r"(?:[\w.]+\.)?mm_projector\.2\.(weight|bias)",
        r"model.multi_modal_projector.linear_2.\1",
    ),
)
ORIGINAL = (
    *DECODER_OF_LLM,
    *PROJECTOR_OF_LLAVA,
    Row(
        rf"model\.vision_tower\.vision_tower\.vision_model\.(?!embeddings\.position_ids){TOWER}",
        r"model.vision_tower.vision_model.\1",
    ),
    Row(
        r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.position_ids",
        None,
        POSITION_IDS,
    ),
    Row(
        r"model\.image_newline",
        None,
        "it separates the rows of tiles (anyres); here the tower sees one square view of an image",
    ),
)
LLAVA_HF = (
    Row(r"(?:language_model\.)?lm_head\.weight", "lm_head.weight"),
    Row(
        rf"(?:model\.)?language_model\.(?:model\.)?{DECODER}\.(weight|bias)",
        r"model.language_model.\1.\2",
    ),
    Row(r"(?:model\.)?language_model\.(?:model\.)?(?:.+\.)?rotary_emb\.inv_freq", None, COMPUTED),
    Row(
        rf"(?:model\.)?vision_tower\.(?:vision_model\.)?(?!embeddings\.position_ids){TOWER}",
        r"model.vision_tower.vision_model.\1",
    ),
    Row(
        r"(?:model\.)?vision_tower\.(?:vision_model\.)?embeddings\.position_ids",
        None,
        POSITION_IDS,
    ),
    Row(
        r"(?:model\.)?multi_modal_projector\.(linear_[12])\.(weight|bias)",
        r"model.multi_modal_projector.\1.\2",
    ),
)
OWN_EXPERTS = (
    Row(
        r"model\.multi_modal_projector\.visual_expert\.(.+)",
        r"model.multi_modal_projector.visual_expert.\1",
    ),
    Row(
        r"model\.language_model\.language_expert\.(.+)",
        r"model.language_model.language_expert.\1",
    ),
    Row(
        r"model\.language_model\.layers\.(\d+)\.language_expert\.(.+)",
        r"model.language_model.layers.\1.language_expert.\2",
    ),
)
# The documented default of a fork: our names of the experts under the original's prefixes.
FORK_EXPERTS = (
    Row(
        r"model\.mm_projector\.visual_expert\.(.+)",
        r"model.multi_modal_projector.visual_expert.\1",
    ),
    Row(r"model\.language_expert\.(.+)", r"model.language_model.language_expert.\1"),
    Row(
        r"model\.layers\.(\d+)\.language_expert\.(.+)",
        r"model.language_model.layers.\1.language_expert.\2",
    ),
)
CLIP = (
    Row(
        rf"(?:vision_model\.)?(?!embeddings\.position_ids){TOWER}",
        r"model.vision_tower.vision_model.\1",
    ),
    Row(r"(?:vision_model\.)?embeddings\.position_ids", None, POSITION_IDS),
    Row(r"text_model\..+", None, "LLaVA uses CLIP's vision tower alone"),
    Row(r"logit_scale|(?:visual|text)_projection\.weight", None, "it belongs to CLIP's contrast"),
)

# A LoRA folder's non_lora_trainables.bin: the original's names under what PEFT put before them.
NON_LORA = (
    tuple(
        row._replace(pattern=rf"(?:base_model\.model\.)?(?:{row.pattern})")
        for row in (*DECODER_OF_LLM, *ORIGINAL[len(DECODER_OF_LLM) + len(PROJECTOR_OF_LLAVA) :])
    )
    + PROJECTOR_OF_LLAVA
)

SOURCE_TABLES: dict[str, tuple[Row, ...]] = {
    "llava": ORIGINAL,
    "delta": ORIGINAL,
    "fork": ORIGINAL,
    "llava-hf": LLAVA_HF,
    "hyperllava": LLAVA_HF + OWN_EXPERTS,
    "projector": PROJECTOR_OF_LLAVA,
    "non_lora": NON_LORA,
    "llama": DECODER_OF_LLM,
    "clip": CLIP,
}

# From our names into other layouts. llava-hf: as published, the layout before transformers 4.52.
TARGET_TABLES: dict[str, tuple[Row, ...]] = {
    "hyperllava": (Row(r"(.+)", r"\1"),),
    "llava-hf": (
        Row(r"lm_head\.weight", "language_model.lm_head.weight"),
        Row(r"model\.language_model\.(.+)", r"language_model.model.\1"),
        Row(r"model\.(vision_tower|multi_modal_projector)\.(.+)", r"\1.\2"),
    ),
    "llava": (
        Row(r"lm_head\.weight", "lm_head.weight"),
        Row(r"model\.language_model\.(.+)", r"model.\1"),
        Row(r"model\.vision_tower\.(.+)", r"model.vision_tower.vision_tower.\1"),
        Row(r"model\.multi_modal_projector\.linear_1\.(.+)", r"model.mm_projector.0.\1"),
        Row(r"model\.multi_modal_projector\.linear_2\.(.+)", r"model.mm_projector.2.\1"),
    ),
}


def name_some(names: Iterable[str]) -> str:
    """Name the first few of many, for an error.

    Args:
        names: the names.

    Returns:
        The first of them in order, and how many more there are.
    """
    ordered = sorted(names)
    shown = ", ".join(ordered[:NUM_NAMED])
    return shown if len(ordered) <= NUM_NAMED else f"{shown} and {len(ordered) - NUM_NAMED} more"


def match_row(table: tuple[Row, ...], key: str) -> tuple[Row, str | None] | None:
    """Find the row of a key.

    Args:
        table: the table.
        key: a key.

    Returns:
        The row and the new key (None: dropped); None if no row matches.

    Raises:
        ValueError: if several rows match, which makes the table ambiguous.
    """
    found = [(row, match) for row in table if (match := re.fullmatch(row.pattern, key))]
    if len(found) > 1:
        patterns = " and ".join(row.pattern for row, _ in found)
        raise ValueError(f"{key} matches {patterns}; expected one row: make the patterns narrower")
    if not found:
        return None
    row, match = found[0]
    return row, None if row.target is None else match.expand(row.target)


def rename_key(table: tuple[Row, ...], key: str) -> str:
    """Rename one key, which must be known.

    Args:
        table: the table.
        key: a key.

    Returns:
        The new key.

    Raises:
        ValueError: if the table has no place for the key.
    """
    found = match_row(table, key)
    if found is None or found[1] is None:
        raise ValueError(f"the layout has no place for {key}")
    return found[1]
