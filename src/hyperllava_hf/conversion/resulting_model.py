"""What the result is beside its tensors: configuration, tokenizer and size of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..json_files import load_optional_json
from .config_translation import (
    describe_losses,
    merge_llm_config,
    normalize_llava_hf_config,
    read_expert_fields,
    translate_llava_config,
    translate_llm_config,
)
from .gathering import Gathered
from .manifest import MANIFEST
from .plan import VOCABULARY
from .source_opening import locate
from .source_parts import SourceParts
from .tokenizer_loading import add_llava_tokens, load_source_tokenizer
from .vision_configs import find_vision_config, load_vision_config

EMBEDDING = VOCABULARY[0]
# Rows of the vocabulary come in multiples of this, as in the published conversions.
ROW_MULTIPLE = 64
OWN_FORMS = ("llava-hf", "hyperllava")


@dataclass(frozen=True)
class ResultingModel:
    """The result without its tensors.

    Attributes:
        llava_config: LLaVA's fields in transformers' form.
        tokenizer: a fast tokenizer with `<image>` and a padding token.
        source_rows: rows of the source's embedding.
        num_rows: rows of the result's.
        base_rows: rows that belong to the LLM, without those that a conversion appends.
        base_tokens: tokens that belong to the LLM, without `<image>` and `<pad>`.
        image_aspect_ratio: the original's field, None for a source in transformers' form.
        vision_tower: the original's name for its tower, as far as it is known.
        notes: what the user should know.
    """

    llava_config: dict[str, Any]
    tokenizer: Any
    source_rows: int
    num_rows: int
    base_rows: int
    base_tokens: int
    image_aspect_ratio: str | None
    vision_tower: str | None
    notes: list[str] = field(default_factory=list)


def describe_result(parts: SourceParts, gathered: Gathered) -> ResultingModel:
    """Work out configuration, tokenizer and vocabulary of the result.

    Args:
        parts: the source's files.
        gathered: the source's tensors.

    Returns:
        The result without its tensors.

    Raises:
        ValueError: if the source cannot be a HyperLLaVA, or lacks a tokenizer or configuration.
    """
    if EMBEDDING not in gathered.tensors:
        raise ValueError(
            f"found no embedding ({EMBEDDING} in our names) in {parts.folder}; expected a whole "
            "checkpoint: check that all its files are there, and the layout with --layout"
        )
    source_rows = gathered.tensors[EMBEDDING].shape[0]
    bases = [parts.base] if parts.base else []
    folders = [part.folder for part in [parts, *bases]]
    own_form = parts.layout in OWN_FORMS
    tokenizer = load_source_tokenizer(folders, source_rows, prefer_sentencepiece=not own_form)
    num_before = len(tokenizer)
    image_id, pad_id = add_llava_tokens(tokenizer)
    num_rows = source_rows
    if not own_form or len(tokenizer) > source_rows:
        num_rows = -(-max(source_rows, len(tokenizer)) // ROW_MULTIPLE) * ROW_MULTIPLE
    config = _translate(parts, num_rows, image_id, pad_id)
    raise_if_image_token_differs(parts, image_id)
    original = {} if own_form else _original_config(parts)
    base_tokens = len(tokenizer) if own_form else num_before
    # The tokens that a conversion appends come last.
    while own_form and base_tokens - 1 in (image_id, pad_id):
        base_tokens -= 1
    notes = describe_losses(original) if original else []
    if num_rows != source_rows:
        added = len(tokenizer) - num_before
        notes.append(
            f"embedding and head: {source_rows} rows became {num_rows}, the new ones at the mean "
            f"of the old; the tokenizer got {added} token{'' if added == 1 else 's'}"
        )
    return ResultingModel(
        config,
        tokenizer,
        source_rows,
        num_rows,
        _count_base_rows(parts, source_rows, base_tokens) if own_form else source_rows,
        base_tokens,
        (original.get("image_aspect_ratio") or "square") if original else None,
        original.get("mm_vision_tower") or _read_manifest(parts).get("vision_tower"),
        notes,
    )


def _original_config(parts: SourceParts) -> dict[str, Any]:
    if parts.layout in ("projector", "lora"):
        assert parts.base is not None
        return merge_llm_config(parts.base.config, parts.config)
    return parts.config


def _translate(parts: SourceParts, num_rows: int, image_id: int, pad_id: int) -> dict[str, Any]:
    sizes = (num_rows, image_id, pad_id)
    if parts.layout in OWN_FORMS:
        return normalize_llava_hf_config(parts.config, *sizes)
    if parts.base is not None and parts.layout != "delta":
        if parts.base.layout in OWN_FORMS:
            return normalize_llava_hf_config(parts.base.config, *sizes)
        vision = get_vision_config(parts)
        return translate_llm_config(parts.base.config, parts.config or None, vision, *sizes)
    if not parts.config:
        raise ValueError(f"found no config.json in {parts.folder}; expected the checkpoint's own")
    return translate_llava_config(parts.config, get_vision_config(parts), *sizes)


def get_vision_config(parts: SourceParts) -> dict[str, Any]:
    """Get the configuration of a source's vision tower, from its folder or by its known name.

    Args:
        parts: the source's files.

    Returns:
        Fields of a clip_vision_model.

    Raises:
        ValueError: if it cannot be found.
    """
    if parts.vision is not None:
        return load_vision_config(parts.vision.folder)
    named = _original_config(parts).get("mm_vision_tower")
    for folder in (parts.folder / str(named), Path(str(named)).expanduser()):
        if named and (folder / "config.json").is_file():
            return load_vision_config(folder)
    try:
        return find_vision_config(named)
    except ValueError:
        if not named:
            raise
    return load_vision_config(locate(str(named)))


def raise_if_image_token_differs(parts: SourceParts, image_id: int) -> None:
    """Check that configuration and tokenizer of a LLaVA in transformers' form agree.

    Args:
        parts: the source's files.
        image_id: id of `<image>` in the tokenizer.

    Raises:
        ValueError: if they name different ids.
    """
    config = parts.config
    stated = config.get("image_token_index", config.get("image_token_id"))
    if parts.layout in OWN_FORMS and stated is not None and stated != image_id:
        raise ValueError(
            f"config.json of {parts.folder} says that images have the token {stated}, but <image> "
            f"is {image_id} in its tokenizer; expected files of one checkpoint: get them again"
        )


def _read_manifest(parts: SourceParts) -> dict[str, Any]:
    manifest = parts.folder / MANIFEST
    return load_optional_json(manifest)


def _count_base_rows(parts: SourceParts, source_rows: int, base_tokens: int) -> int:
    recorded = _read_manifest(parts).get("base_vocabulary_size")
    if isinstance(recorded, int) and 0 < recorded <= source_rows:
        return recorded
    return base_tokens


def read_fields(
    parts: SourceParts, rules_fields: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the expert fields that a source's experts were made with.

    Args:
        parts: the source's files.
        rules_fields: what a fork's table of rules says.
        given: what the user says; it describes a fork's experts, whose configuration is foreign.

    Returns:
        The fields that are stated anywhere.
    """
    stated = read_expert_fields(parts.config)
    return {**stated, **rules_fields, **given} if parts.layout == "fork" else stated
