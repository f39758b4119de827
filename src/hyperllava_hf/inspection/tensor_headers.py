"""The names, shapes and dtypes of a checkpoint's tensors, without reading the tensors."""

import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from safetensors import SafetensorError, safe_open

from hyperllava_hf.json_files import load_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorHeader(NamedTuple):
    """One tensor's shape, and its dtype as safetensors names it (F32, BF16 and so on)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_parameters(self) -> int:
        """The number of values."""
        return prod(self.shape)


def load_tensor_headers(checkpoint: str, revision: str | None = None) -> dict[str, TensorHeader]:
    """Load the headers of a checkpoint's safetensors files.

    A repository on the Hub costs a few small range requests, not a download.

    Args:
        checkpoint: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.

    Returns:
        The header of every tensor by its name.

    Raises:
        ValueError: if the checkpoint has no safetensors weights or a file of them is damaged.
    """
    if not os.path.isdir(checkpoint):
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            return _fetch_headers(checkpoint, revision)
        checkpoint = huggingface_hub.snapshot_download(checkpoint, revision=revision)
    return _read_folder(Path(checkpoint))


def _fetch_headers(repository: str, revision: str | None) -> dict[str, TensorHeader]:
    try:
        metadata = huggingface_hub.get_safetensors_metadata(repository, revision=revision)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ValueError(
            f"{repository} has no whole safetensors weights ({error}); expected {WEIGHTS} or "
            f"{INDEX} with its shards"
        ) from error
    return {
        name: TensorHeader(tuple(tensor.shape), tensor.dtype)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _read_folder(folder: Path) -> dict[str, TensorHeader]:
    if (folder / INDEX).exists():
        weight_map: Any = load_json(folder / INDEX).get("weight_map")
        shards = set(weight_map.values()) if _is_weight_map(weight_map) else set()
        if not shards:
            raise ValueError(
                f"{folder / INDEX} has no weight_map from tensors to files beside it; get it again"
            )
    elif (folder / WEIGHTS).exists():
        shards = {WEIGHTS}
    else:
        raise ValueError(f"found neither {WEIGHTS} nor {INDEX} in {folder}; expected safetensors")
    headers: dict[str, TensorHeader] = {}
    for shard in sorted(shards):
        headers |= _read_file(folder / shard)
    return headers


def _is_weight_map(value: Any) -> bool:
    # Nothing outside the folder is ever opened.
    return isinstance(value, dict) and all(
        isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        for name in value.values()
    )


def _read_file(path: Path) -> dict[str, TensorHeader]:
    if not path.exists():
        raise ValueError(f"found no file {path}, which {INDEX} names; download it again")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); get it again") from error
