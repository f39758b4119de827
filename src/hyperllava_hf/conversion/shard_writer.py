"""Write tensors into safetensors shards while they are produced, hashing each file on the way.

safetensors' own writer takes whole tensors of a whole shard, which would put a shard into memory;
the format's header is known beforehand from shapes and dtypes, so here the header is written first
and rows follow as they come. Hashing and writing run beside reading, each on its own thread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from .operations import TensorOperation, count_bytes, read_chunks
from .tensor_files import SAFETENSORS_DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
INDEX = "model.safetensors.index.json"
# Chunks that wait to be hashed and written: enough to keep three threads busy, few enough to hold.
MAX_WAITING = 4


@dataclass(frozen=True)
class FileRecord:
    """A file of a conversion: its name, its size in bytes and its sha256 (None: not hashed)."""

    name: str
    num_bytes: int
    sha256: str | None


def as_bytes(rows: torch.Tensor) -> memoryview:
    """View a tensor's values as bytes.

    Args:
        rows: the tensor.

    Returns:
        Its bytes, without a copy where the values lie one after the other.
    """
    return rows.contiguous().view(-1).view(torch.uint8).numpy().data


class NonFiniteError(ValueError):
    """A tensor holds NaN or Inf."""


def raise_if_nonfinite(name: str, rows: torch.Tensor) -> None:
    """Check rows for NaN and Inf.

    Args:
        name: the tensor's name, for the error.
        rows: some of its rows.

    Raises:
        NonFiniteError: if there is one.
    """
    if not rows.dtype.is_floating_point or rows.numel() == 0:
        return
    # The extremes of finite values are finite, and NaN spreads to both: one fast pass. On one
    # thread, because several would wait for the cores on which hashing and writing run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        extremes = rows.aminmax()
    finally:
        torch.set_num_threads(threads)
    if not all(bool(torch.isfinite(extreme)) for extreme in extremes):
        raise NonFiniteError(
            f"{name} holds NaN or Inf; expected finite weights: the checkpoint is damaged or "
            "diverged, or its values are too large for the dtype asked for. Pass "
            "--allow-nonfinite (allow_nonfinite=True) to convert it all the same"
        )


def plan_shards(
    tensors: Mapping[str, TensorOperation], max_shard_size: str | int
) -> dict[str, list[str]]:
    """Distribute tensors over files.

    Args:
        tensors: the tensors by key.
        max_shard_size: largest size of a file, as "5GB" or in bytes.

    Returns:
        The keys of each file, in the order in which they are written.

    Raises:
        ValueError: if the size is not understood.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=count_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    # Wider items first keeps every tensor aligned, as safetensors' own writer has it.
    return {
        file: sorted(keys, key=lambda key: -tensors[key].dtype.itemsize)
        for file, keys in split.filename_to_tensors.items()
    }


def build_header(tensors: Mapping[str, TensorOperation], metadata: Mapping[str, str]) -> bytes:
    """Build the header of a safetensors file.

    Args:
        tensors: the file's tensors, in the order of their data.
        metadata: free strings.

    Returns:
        The length and the header, padded to a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for key, tensor in tensors.items():
        end = position + count_bytes(tensor)
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _HashedFile:
    """A file that is written and hashed by two threads, in the order of the calls."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self._pools = (ThreadPoolExecutor(1), ThreadPoolExecutor(1))
        self._waiting: deque[tuple[Future[Any], ...]] = deque()

    def write(self, data: bytes | memoryview) -> None:
        self.num_bytes += len(data)
        calls: tuple[Callable[[Any], Any], ...] = (self.digest.update, self._write_all)
        self._waiting.append(
            tuple(pool.submit(call, data) for pool, call in zip(self._pools, calls, strict=True))
        )
        if len(self._waiting) > MAX_WAITING:
            self._wait_for_oldest()

    def _write_all(self, data: bytes | memoryview) -> None:
        # An unbuffered write may take a part: at 2 GiB, or where the disk is nearly full.
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]

    def _wait_for_oldest(self) -> None:
        for future in self._waiting.popleft():
            future.result()

    def finish(self) -> None:
        while self._waiting:
            self._wait_for_oldest()

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)


def write_file(
    path: Path,
    tensors: Mapping[str, TensorOperation],
    metadata: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_rows: Callable[[str, memoryview], None] = lambda key, data: None,
) -> FileRecord:
    """Write one safetensors file; `sync_file` makes it durable.

    Args:
        path: the file.
        tensors: its tensors, in the order in which they are to be written.
        metadata: free strings of the header.
        allow_nonfinite: whether NaN and Inf may be written.
        on_bytes: is told how many bytes were produced.
        on_rows: is given each key and its next bytes.

    Returns:
        The file's size and sha256.

    Raises:
        NonFiniteError: if a tensor holds NaN or Inf.
    """
    with path.open("wb", buffering=0) as raw:
        hashed = _HashedFile(raw)
        try:
            hashed.write(build_header(tensors, metadata or {"format": "pt"}))
            for key, tensor in tensors.items():
                for rows in read_chunks(tensor):
                    if not allow_nonfinite:
                        raise_if_nonfinite(key, rows)
                    data = as_bytes(rows)
                    on_rows(key, data)
                    hashed.write(data)
                    on_bytes(len(data))
            hashed.finish()
        finally:
            hashed.close()
    return FileRecord(path.name, hashed.num_bytes, hashed.digest.hexdigest())


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Args:
        path: the file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shards(
    folder: Path,
    tensors: Mapping[str, TensorOperation],
    max_shard_size: str | int,
    allow_nonfinite: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_rows: Callable[[str, memoryview], None] = lambda key, data: None,
) -> list[FileRecord]:
    """Write tensors into as many files as their size needs; the index comes last.

    Args:
        folder: where to write.
        tensors: the tensors by key.
        max_shard_size: largest size of a file, as "5GB" or in bytes.
        allow_nonfinite: whether NaN and Inf may be written.
        on_bytes: is told how many bytes were produced.
        on_rows: is given each key and its next bytes.

    Returns:
        The files that were written.
    """
    shards = plan_shards(tensors, max_shard_size)
    records = []
    for file, keys in shards.items():
        part = {key: tensors[key] for key in keys}
        records.append(
            write_file(
                folder / file,
                part,
                allow_nonfinite=allow_nonfinite,
                on_bytes=on_bytes,
                on_rows=on_rows,
            )
        )
    # At the end alone: until then the system writes when the disk is free, and a sync in between
    # would hold up the reading.
    for file in shards:
        sync_file(folder / file)
    if len(shards) > 1:
        total = sum(count_bytes(tensor) for tensor in tensors.values())
        weight_map = {key: file for file, keys in shards.items() for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        records.append(write_text(folder / INDEX, json.dumps(index, indent=2) + "\n"))
    return records


def write_text(path: Path, text: str) -> FileRecord:
    """Write a text file and sync it to the disk.

    Args:
        path: the file.
        text: its content.

    Returns:
        The file's size and sha256.
    """
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    return hash_file(path)


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> FileRecord:
    """Hash a file.

    Args:
        path: the file.
        on_bytes: is told how many bytes were read.

    Returns:
        The file's size and sha256.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(2**22)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
            on_bytes(count)
    return FileRecord(path.name, size, digest.hexdigest())
