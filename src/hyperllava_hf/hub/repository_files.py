"""The files that make a repository complete, where the folder to push lacks them or holds less."""

import json
from pathlib import Path
from typing import Any

from hyperllava_hf.json_files import load_json
from hyperllava_hf.modeling.configuration_hyperllava import AUTO_MAP
from hyperllava_hf.processing.chat_templates_hyperllava import VICUNA_V1
from hyperllava_hf.shipped_code import load_shipped_code

LICENCE = Path(__file__).with_name("LICENSE")


def complete_code(files: dict[str, Path], notes: list[str]) -> dict[str, bytes]:
    """Add the code, or say where the folder's own differs from the package's.

    Args:
        files: the folder's files.
        notes: gets what the user should know.

    Returns:
        The files to add.

    Raises:
        ValueError: if the folder holds a part of another version's code.
    """
    shipped = load_shipped_code()
    differing = [
        name
        for name, content in shipped.items()
        if name in files and files[name].read_bytes() != content
    ]
    missing = {name: content for name, content in shipped.items() if name not in files}
    if differing and missing:
        raise ValueError(
            f"found code of another version ({', '.join(differing[:3])}) that lacks "
            f"{', '.join(sorted(missing)[:3])}; expected one version, whole. Delete the folder's "
            "*_hyperllava.py files to push this package's, or save again with save_pretrained."
        )
    if differing:
        notes.append(
            f"{len(differing)} code files differ from this package's and are pushed as they are: "
            f"{', '.join(differing)}."
        )
    return missing


def write_json(content: dict[str, Any]) -> bytes:
    """Write JSON as transformers does."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def complete_config(files: dict[str, Path], notes: list[str]) -> dict[str, bytes]:
    """Add auto classes that config.json does not map to the code yet.

    Args:
        files: the folder's files.
        notes: gets what the user should know.

    Returns:
        The file to replace, if any.
    """
    config = load_json(files["config.json"])
    found = config.get("auto_map") or {}
    if {key: found.get(key) for key in AUTO_MAP} == AUTO_MAP:
        return {}
    notes.append("config.json did not map every auto class to its code; the pushed one does.")
    return {"config.json": write_json({**config, "auto_map": {**found, **AUTO_MAP}})}


def complete_processor(files: dict[str, Path], notes: list[str]) -> dict[str, bytes]:
    """Add the form of the processor's settings that the other transformers line reads.

    Args:
        files: the folder's files.
        notes: gets what the user should know.

    Returns:
        The files to add or replace.

    Raises:
        ValueError: if only the image processor's settings are there.
    """
    if "processor_config.json" not in files:
        raise ValueError(
            "found preprocessor_config.json without processor_config.json; expected both. Write "
            "them with processor.save_pretrained(FOLDER)."
        )
    config = load_json(files["processor_config.json"])
    nested = config.get("image_processor")
    added = {}
    if "preprocessor_config.json" not in files:
        if not nested:
            raise ValueError(
                "found no image settings in processor_config.json, nor preprocessor_config.json; "
                "expected one of them. Write both with processor.save_pretrained(FOLDER)."
            )
        settings = {**nested, "processor_class": "HyperLlavaProcessor"}
        added["preprocessor_config.json"] = write_json(settings)
    elif not nested:
        text = files["preprocessor_config.json"].read_text(encoding="utf-8")
        settings = {k: v for k, v in json.loads(text).items() if k != "processor_class"}
        added["processor_config.json"] = write_json({**config, "image_processor": settings})
    for name in added:
        notes.append(f"{name} is written in the form that the other transformers line reads.")
    return added


def complete_repository(files: dict[str, Path]) -> tuple[dict[str, bytes], list[str]]:
    """Make the files that a complete repository needs besides what its folder holds.

    The card, and the licence that goes with it, are made elsewhere.

    Args:
        files: the folder's files, by their path in the repository.

    Returns:
        Content to add or to replace, by path, and what the user should know.

    Raises:
        ValueError: if the folder's own files do not fit together.
    """
    notes: list[str] = []
    added = {
        **complete_config(files, notes),
        **complete_code(files, notes),
        **complete_processor(files, notes),
    }
    if "chat_template.jinja" not in files:
        added["chat_template.jinja"] = VICUNA_V1.encode()
        notes.append("chat_template.jinja was missing; Vicuna's, the default, is added.")
    return added, notes
