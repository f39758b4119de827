"""conversion.json: what a converted folder was made from, by what, and how that was verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from hyperllava_hf import __version__

from .shard_writer import FileRecord, hash_file, write_text
from .source_parts import SourceParts

MANIFEST = "conversion.json"
# Beside the weights, what decides the result is read from these.
READ_BESIDE_WEIGHTS = (
    "config.json",
    "adapter_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def list_inputs(parts: SourceParts) -> dict[str, Path]:
    """List every file that a conversion reads, by the name that the manifest gives it.

    Args:
        parts: the source's files.

    Returns:
        Paths by name: `base/` and `vision_tower/` stand before the names of other folders' files.
    """
    inputs = {}
    named = (("", parts), ("base/", parts.base), ("vision_tower/", parts.vision))
    for prefix, part in named:
        if part is None:
            continue
        weights = [*part.weights, *([part.non_lora] if part.non_lora else [])]
        beside = [part.folder / name for name in READ_BESIDE_WEIGHTS]
        for path in [*weights, *(path for path in beside if path.is_file())]:
            inputs[prefix + path.name] = path
    return inputs


def hash_outputs(folder: Path, written: Sequence[FileRecord], scratch: Path) -> list[FileRecord]:
    """Record every file of a folder, hashing those that were not hashed while they were written.

    Args:
        folder: the folder.
        written: the records that there are.
        scratch: a folder inside it that will be removed.

    Returns:
        A record a file, by name.
    """
    known = {record.name: record for record in written}
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and scratch not in path.parents
    )
    return [
        known.get(name) or FileRecord(name, *_size_and_hash(folder / name))
        for name in names
        if name != MANIFEST
    ]


def _size_and_hash(path: Path) -> tuple[int, str | None]:
    record = hash_file(path)
    return record.num_bytes, record.sha256


def write_manifest(
    folder: Path,
    facts: Mapping[str, Any],
    inputs: Sequence[FileRecord],
    outputs: Sequence[FileRecord],
) -> None:
    """Write the manifest.

    Args:
        folder: where to write.
        facts: layout, options, verification and so on; plain values.
        inputs: the files that were read.
        outputs: the files that were written.
    """
    content = {
        **facts,
        "inputs": [asdict(record) for record in inputs],
        "outputs": [asdict(record) for record in outputs],
        "versions": {
            "hyperllava_hf": __version__,
            "safetensors": safetensors.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    write_text(folder / MANIFEST, json.dumps(content, indent=2, sort_keys=True) + "\n")
