"""What a written source consists of, put together by hand."""

import json
from pathlib import Path

from hyperllava_hf.conversion.source_parts import SourceParts


def find_weights(folder):
    """The index's files, or the only file of weights."""
    for index in folder.glob("*.index.json"):
        names = set(json.loads(index.read_text())["weight_map"].values())
        return tuple(sorted(folder / name for name in names))
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return tuple(path for path in paths if "non_lora" not in path.name)


def read_config(folder):
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def as_parts(source):
    """SourceParts of a `layout_writers.Source`; the tower is the folder beside it."""
    config = read_config(source.path)
    tower = source.options.get("vision_tower", config.get("mm_vision_tower"))
    has_tower = tower is not None and Path(tower).exists()
    llm = source.options.get("base_llm")
    non_lora = source.path / "non_lora_trainables.bin"
    return SourceParts(
        layout=source.layout,
        folder=source.path,
        weights=find_weights(source.path),
        config=config,
        base=None if llm is None else as_part("llama", Path(llm)),
        vision=as_part("clip", Path(tower)) if has_tower else None,
        non_lora=non_lora if non_lora.exists() else None,
    )


def as_part(layout, folder):
    return SourceParts(layout, folder, find_weights(folder), read_config(folder))
