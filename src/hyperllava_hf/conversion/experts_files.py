"""A file of experts alone, bound to the base that they were trained on.

A safetensors file whose tensors are the experts under our keys, and whose metadata names the
experts' configuration and the identity of the base: a sha256 over the base's keys, dtypes, shapes
and values, in the order of the keys. Experts on another base compute something else, so they are
put back on no other.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..modeling.checkpoint_hyperllava import is_expert_key
from ..modeling.configuration_hyperllava import EXPERT_FIELDS
from .operations import Copy, TensorOperation, read_chunks
from .shard_writer import FileRecord, as_bytes, sync_file, write_file
from .tensor_files import list_tensors

FIELDS, IDENTITY = "hyperllava_expert_fields", "hyperllava_base_sha256"
# The slices that make W_u: while they are zero, every expert's update is zero.
UP_SLICES = (".weight_up", ".bias_up")


@dataclass(frozen=True)
class ExpertsFile:
    """The content of a file of experts.

    Attributes:
        path: the file.
        tensors: the experts by our keys.
        fields: the expert fields of their configuration.
        base_identity: sha256 of the base that they belong to.
    """

    path: Path
    tensors: dict[str, TensorOperation]
    fields: dict[str, Any]
    base_identity: str


def split_experts(
    tensors: Mapping[str, TensorOperation],
) -> tuple[dict[str, TensorOperation], dict[str, TensorOperation]]:
    """Split tensors into the base's and the experts'.

    Args:
        tensors: tensors by our keys.

    Returns:
        The base's and the experts'.
    """
    base = {key: value for key, value in tensors.items() if not is_expert_key(key)}
    experts = {key: value for key, value in tensors.items() if is_expert_key(key)}
    return base, experts


def are_identity(experts: Mapping[str, TensorOperation]) -> bool:
    """Tell whether experts change nothing, since they are as they were initialised.

    Args:
        experts: the experts' tensors by key.

    Returns:
        True if every slice that makes W_u is zero (also where there are none).
    """
    return not any(
        bool(rows.any())
        for key, tensor in experts.items()
        if key.endswith(UP_SLICES)
        for rows in read_chunks(tensor)
    )


def hash_base(
    base: Mapping[str, TensorOperation], on_bytes: Callable[[int], None] = lambda count: None
) -> str:
    """Compute the identity of a base.

    Args:
        base: the base's tensors by our keys.
        on_bytes: is told how many bytes were read.

    Returns:
        The sha256 as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(base.items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        for rows in read_chunks(tensor):
            data = as_bytes(rows)
            digest.update(data)
            on_bytes(len(data))
    return digest.hexdigest()


def write_experts_file(
    path: Path, experts: Mapping[str, TensorOperation], fields: Mapping[str, Any], identity: str
) -> FileRecord:
    """Write experts into a file that appears whole or not at all.

    Args:
        path: the file.
        experts: the experts' tensors by our keys.
        fields: the expert fields of their configuration.
        identity: the identity of their base.

    Returns:
        The file's size and sha256.
    """
    metadata = {
        "format": "pt",
        FIELDS: json.dumps({name: fields[name] for name in EXPERT_FIELDS}, sort_keys=True),
        IDENTITY: identity,
    }
    ordered = dict(sorted(experts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    partial = path.with_name(f".{path.name}.partial")
    try:
        record = write_file(partial, ordered, metadata)
        sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return FileRecord(path.name, record.num_bytes, record.sha256)


def _parse_fields(path: Path, text: str) -> dict[str, Any]:
    # A field that is lost or misspelt would silently take its default, which is another expert.
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.keys() != EXPERT_FIELDS.keys():
        found = (
            f"the fields {', '.join(sorted(fields))}" if isinstance(fields, dict) else repr(text)
        )
        raise ValueError(
            f"{path}: found {found} in its metadata ({FIELDS}), expected "
            f"{', '.join(sorted(EXPERT_FIELDS))}; extract the experts again"
        )
    return fields


def read_experts_file(path: Path) -> ExpertsFile:
    """Read what a file of experts holds.

    Args:
        path: the file.

    Returns:
        Its content; the tensors are not read yet.

    Raises:
        ValueError: if it is no file that `experts extract` wrote.
    """
    stored = list_tensors(path) if path.suffix == ".safetensors" else {}
    metadata: dict[str, str] = {}
    if stored:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); get it again") from error
    foreign = [key for key in stored if not is_expert_key(key)]
    if not stored or foreign or FIELDS not in metadata or IDENTITY not in metadata:
        raise ValueError(
            f"{path} is no file of experts; expected one that `hyperllava experts extract` wrote"
        )
    fields = _parse_fields(path, metadata[FIELDS])
    tensors: dict[str, TensorOperation] = {key: Copy(tensor) for key, tensor in stored.items()}
    return ExpertsFile(path, tensors, fields, metadata[IDENTITY])
