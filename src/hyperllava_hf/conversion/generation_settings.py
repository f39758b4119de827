"""`generation_config.json` of a converted folder: the source's, as transformers would save it."""

import json
from pathlib import Path
from typing import Any

# Flags that only sampling reads, and only beam search, with the values that say nothing.
# transformers refuses to save them beside the other mode; Vicuna and LLaVA were published so.
_SAMPLING = {
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "min_p": None,
    "temperature": 1.0,
    "top_h": None,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
_BEAMS = {"early_stopping": False, "length_penalty": 1.0}
# Written by transformers about the file itself.
_METADATA = ("_commit_hash", "_from_model_config", "_original_object_hash", "transformers_version")


def build_generation_config(
    config: dict[str, Any], source_folder: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Build the generation settings of a converted folder.

    Args:
        config: Fields of the converted `config.json`, in transformers' form.
        source_folder: Folder whose `generation_config.json` is kept, where it has a sane one.

    Returns:
        The settings, and a sentence for the report where the source's could not be kept whole.
    """
    ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids = {name: value for name, value in ids.items() if value is not None}
    path = None if source_folder is None else Path(source_folder) / "generation_config.json"
    if path is None or not path.is_file():
        return ids, []
    source = _read_settings(path)
    fault = f"{path.name} is no JSON object" if source is None else None
    if source is not None:
        kept = {**ids, **_drop_unread(source), "pad_token_id": ids.get("pad_token_id")}
        kept = {name: value for name, value in kept.items() if value is not None}
        fault = _find_fault(kept)
        if fault is None:
            dropped = sorted(set(_without_metadata(source)) - set(kept))
            note = f"generation settings without effect were left out: {', '.join(dropped)}"
            return dict(sorted(kept.items())), [note] if dropped else []
    return ids, [f"the source's generation settings were replaced by defaults: {fault}"]


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def _without_metadata(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.items()
        if name not in _METADATA and value is not None
    }


def _drop_unread(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the stated way of generating does not read: the answers stay the same."""
    unread: dict[str, Any] = {}
    if not settings.get("do_sample"):
        unread |= _SAMPLING
    if (settings.get("num_beams") or 1) == 1:
        unread |= _BEAMS
    return {
        name: value for name, value in _without_metadata(settings).items() if name not in unread
    }


def _find_fault(settings: dict[str, Any]) -> str | None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(dict(settings)).validate(strict=True)
    except (ValueError, TypeError) as error:
        return str(error).strip().splitlines()[0]
    return None
