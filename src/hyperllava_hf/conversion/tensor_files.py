"""Tensors in .safetensors and .bin files, found by their headers and read a few rows at a time.

Unusual: nothing is mapped into memory. The offset of each tensor is taken from the file's header
and its rows are read with `pread`, so that resident memory is what the caller holds, whatever the
size of the file. A .bin file is opened by `torch.load` itself, with `weights_only=True` and under
torch's FakeTensorMode, which yields shapes and offsets, executes nothing and reads no tensor.
"""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file.

    Attributes:
        name: its name in the file.
        path: the file.
        shape: its shape.
        dtype: its dtype.
        offset: position of its first element in the file, in bytes.
        stride: its strides in elements; None if its elements lie one after the other.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    stride: tuple[int, ...] | None = None

    @property
    def num_rows(self) -> int:
        """Length of the first dimension (1 for a scalar)."""
        return self.shape[0] if self.shape else 1

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * self.dtype.itemsize

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Read rows.

        Args:
            start: first row.
            stop: row after the last.

        Returns:
            The rows (stop - start, ...), in memory of their own; a scalar for a scalar.

        Raises:
            ValueError: if the file ends before the rows do.
        """
        if self.stride is not None:
            return self._strided[start:stop].clone()
        row_bytes = self.num_bytes // max(1, self.num_rows)
        data = torch.empty((stop - start) * row_bytes, dtype=torch.uint8)
        read_bytes(self.path, self.offset + start * row_bytes, data)
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return data.view(self.dtype).reshape(shape)

    @cached_property
    def _strided(self) -> torch.Tensor:
        # Transposed or spread tensors are rare and small in checkpoints: their span is read whole.
        strides = self.stride or ()
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, strides, strict=True))
        data = torch.empty(span * self.dtype.itemsize, dtype=torch.uint8)
        read_bytes(self.path, self.offset, data)
        return data.view(self.dtype).as_strided(self.shape, strides).contiguous()

    def load(self) -> torch.Tensor:
        """Read the whole tensor."""
        return self.read_rows(0, self.num_rows)


class _OpenFile:
    """A descriptor that is closed with the object."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def __del__(self) -> None:
        os.close(self.descriptor)


# The system reads ahead for a descriptor that is read in order, so descriptors are kept: opening
# the file for each piece read at half the speed. A file that was written anew is opened anew.
@lru_cache(maxsize=8)
def _open_for_reading(path: Path, num_bytes: int, changed: int) -> _OpenFile:
    return _OpenFile(path)


def read_bytes(path: Path, offset: int, into: torch.Tensor) -> None:
    """Fill a tensor of bytes from a file.

    Args:
        path: the file.
        offset: where to start, in bytes.
        into: uint8 tensor (bytes,).

    Raises:
        ValueError: if the file is too short.
    """
    view = into.numpy().data
    status = path.stat()
    file = _open_for_reading(path, status.st_size, status.st_mtime_ns)
    done = 0
    while done < len(view):
        count = os.preadv(file.descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ValueError(
                f"{path} ends after {offset + done} bytes, expected {offset + len(view)}; it "
                "was cut short or changed while it was read: get it again"
            )
        done += count


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file.

    Args:
        path: a .safetensors file, or a .bin, .pt or .pth file that `torch.save` wrote.

    Returns:
        The tensors by name, in the file's order.

    Raises:
        ValueError: if the file is missing or damaged, or would execute code when loaded.
    """
    if not path.is_file():
        raise ValueError(f"found no file {path}; expected a file of weights: get it again")
    return _list_safetensors(path) if path.suffix == ".safetensors" else _list_pickled(path)


def _list_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        # The library checks the header against the file's length; offsets it keeps to itself.
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}); it was cut short or damaged: get it "
            "again"
        ) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"{name} of {path} has dtype {entry['dtype']}; expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}: convert the checkpoint before its quantisation"
            )
        offset = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(name, path, tuple(entry["shape"]), dtype, offset)
    return tensors


def _list_pickled(path: Path) -> dict[str, StoredTensor]:
    content = _load_fake(path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected a dict of tensors by name: save "
            "the model's state_dict()"
        )
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} holds {name!r}, a {type(value).__name__}; expected tensors by name: save "
                "the model's state_dict() alone"
            )
        tensors[name] = _locate(name, value, path)
    return tensors


def _load_fake(path: Path) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist())
        if packed:
            raise ValueError(
                f"{path} is a compressed archive; expected a file as torch.save writes it"
            )
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} is refused: it holds more than tensors, and loading it could execute code "
            f"({reason}). Expected a state_dict; ask its maker for safetensors"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} is no whole file of torch.save's zip format ({error}); it was cut short, is "
            "older than torch 1.6, or is a Git LFS pointer: get it again, or save it anew"
        ) from error


def _locate(name: str, value: torch.Tensor, path: Path) -> StoredTensor:
    storage_offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if storage_offset is None:
        raise ValueError(
            f"torch {torch.__version__} does not say where {path} keeps {name}; expected torch 2.7 "
            "or newer: upgrade it, or convert the file to safetensors first"
        )
    offset = storage_offset + value.storage_offset() * value.dtype.itemsize
    stride = None if value.is_contiguous() else tuple(value.stride())
    return StoredTensor(name, path, tuple(value.shape), value.dtype, offset, stride)


def list_all_tensors(paths: tuple[Path, ...]) -> dict[str, StoredTensor]:
    """List the tensors of several files that make one checkpoint.

    Args:
        paths: the files.

    Returns:
        The tensors by name.

    Raises:
        ValueError: if a file is damaged or two files hold the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        found = list_tensors(path)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ValueError(
                f"{twice[0]} stands in {tensors[twice[0]].path.name} and again in {path.name} "
                f"({len(twice)} such keys); expected each key once: remove the files that do not "
                "belong to the checkpoint"
            )
        tensors |= found
    return tensors
