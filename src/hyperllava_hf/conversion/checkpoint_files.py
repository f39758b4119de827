"""Which files of a folder hold its weights, and whether they are what the index says."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ..json_files import load_json, load_optional_json
from .key_tables import name_some
from .tensor_files import StoredTensor

# Safetensors first: where a folder holds both, it is the file that needs no trust.
FORMATS = (
    ("model.safetensors", r"model-\d{5}-of-(\d{5})\.safetensors"),
    ("pytorch_model.bin", r"pytorch_model-\d{5}-of-(\d{5})\.bin"),
)


def load_config(folder: Path) -> dict[str, Any]:
    """Load config.json, or nothing where there is none."""
    path = folder / "config.json"
    return load_optional_json(path)


def load_weight_map(index: Path) -> dict[str, str]:
    """Load which file holds which key.

    Args:
        index: an index of shards.

    Returns:
        File names by key.

    Raises:
        ValueError: if the index is damaged, or names a file that is missing or lies elsewhere.
    """
    weight_map = load_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; expected file names by key: get it again")
    for name in sorted({str(value) for value in weight_map.values()}):
        if PurePosixPath(name).name != name or name in ("", ".", ".."):
            raise ValueError(
                f"{index} names {name!r}, outside its folder; expected names of files beside it"
            )
        if not (index.parent / name).is_file():
            raise ValueError(f"{index} names {name}, which is missing; get that file again")
    return weight_map


def find_weights(folder: Path) -> tuple[Path, ...]:
    """Find the files that hold a folder's weights.

    Args:
        folder: the folder.

    Returns:
        The files in order; none if the folder holds no weights.

    Raises:
        ValueError: if some of the files are missing.
    """
    for single, pattern in FORMATS:
        index = folder / f"{single}.index.json"
        if index.is_file():
            return tuple(folder / name for name in sorted(set(load_weight_map(index).values())))
        if (folder / single).is_file():
            return (folder / single,)
        shards = [match for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))]
        if shards:
            expected = max(int(match[1]) for match in shards)
            if len(shards) != expected:
                raise ValueError(
                    f"found {len(shards)} of {expected} shards and no index in {folder}; get the "
                    "others"
                )
            return tuple(sorted(folder / match[0] for match in shards))
    return ()


def raise_if_index_differs(tensors: dict[str, StoredTensor]) -> None:
    """Check the tensors of a folder's shards against its index, if it has one.

    Args:
        tensors: the tensors by name.

    Raises:
        ValueError: if the index names a key that its file does not hold, or leaves one out.
    """
    for folder in {tensor.path.parent for tensor in tensors.values()}:
        for single, _ in FORMATS:
            index = folder / f"{single}.index.json"
            held = {
                name: tensor.path.name
                for name, tensor in tensors.items()
                if tensor.path.parent == folder and tensor.path.suffix == Path(single).suffix
            }
            if index.is_file() and held:
                _compare(index, load_weight_map(index), held)


def _compare(index: Path, expected: dict[str, str], held: dict[str, str]) -> None:
    absent = [key for key, file in expected.items() if held.get(key) != file]
    if absent:
        raise ValueError(
            f"{index.name} names {len(absent)} keys that their files do not hold: "
            f"{name_some(absent)}; expected shards and index of one checkpoint: get them again"
        )
    unlisted = sorted(held.keys() - expected.keys())
    if unlisted:
        raise ValueError(
            f"the shards hold {len(unlisted)} keys that {index.name} does not name: "
            f"{name_some(unlisted)}; expected shards and index of one checkpoint: get them again"
        )
