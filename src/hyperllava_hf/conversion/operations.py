"""What is done to a tensor on its way from the source to the result: small, named, streaming.

Every operation knows its shape and dtype beforehand and produces its rows on demand, so a chain of
them holds a few rows at a time. A row is a slice of the first dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import torch

from .tensor_files import StoredTensor

CHUNK_BYTES = 16 * 2**20


class TensorOperation(Protocol):
    """A tensor that is produced row by row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""

    @property
    def name(self) -> str:
        """What is done, for the plan: "copy", "cast" and so on."""

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read."""

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...) in memory of their own."""


def count_bytes(operation: TensorOperation) -> int:
    """Count the bytes of an operation's result.

    Args:
        operation: the operation.

    Returns:
        The bytes.
    """
    return prod(operation.shape) * operation.dtype.itemsize


def read_chunks(operation: TensorOperation) -> Iterator[torch.Tensor]:
    """Produce a whole tensor in pieces of whole rows.

    Args:
        operation: what produces it.

    Yields:
        Rows in order; about CHUNK_BYTES each, at least one row.
    """
    num_rows = operation.shape[0] if operation.shape else 1
    row_bytes = count_bytes(operation) // max(1, num_rows)
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield operation.read_rows(start, min(start + step, num_rows))


def load_tensor(operation: TensorOperation) -> torch.Tensor:
    """Produce a whole tensor at once.

    Args:
        operation: what produces it.

    Returns:
        The tensor.
    """
    return operation.read_rows(0, operation.shape[0] if operation.shape else 1)


@dataclass(frozen=True)
class Copy:
    """The stored tensor as it is."""

    stored: StoredTensor

    name = "copy"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.stored.dtype

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensor."""
        return (self.stored,)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Read rows (stop - start, ...)."""
        return self.stored.read_rows(start, stop)


@dataclass(frozen=True)
class Constant:
    """A tensor that is in no source: a fresh expert's."""

    value: torch.Tensor

    name = "initialize"
    sources = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.value.dtype

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Copy rows (stop - start, ...)."""
        return self.value[start:stop].clone() if self.shape else self.value.clone()


@dataclass(frozen=True)
class Wrapped:
    """An operation on one other operation."""

    inner: TensorOperation

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.inner.dtype

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read."""
        return self.inner.sources

    def _join(self, verb: str) -> str:
        return verb if self.inner.name == "copy" else f"{self.inner.name}, {verb}"


@dataclass(frozen=True)
class Cast(Wrapped):
    """Another dtype."""

    to: torch.dtype

    @property
    def name(self) -> str:
        """What is done."""
        return self._join(f"cast to {str(self.to).removeprefix('torch.')}")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.to

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        return self.inner.read_rows(start, stop).to(self.to)


@dataclass(frozen=True)
class AppendMeanRows(Wrapped):
    """Rows appended to a vocabulary's matrix, each the mean of the rows that were there.

    The mean is summed in float64 and rounded once, so a run repeats bit for bit.
    """

    num_rows: int

    @property
    def name(self) -> str:
        """What is done."""
        return self._join(f"append {self.num_rows - self.inner.shape[0]} rows of the mean")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (self.num_rows, *self.inner.shape[1:])

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean row (columns,)."""
        total = torch.zeros(self.inner.shape[1:], dtype=torch.float64)
        for rows in read_chunks(self.inner):
            total += rows.double().sum(0)
        return (total / self.inner.shape[0]).to(self.inner.dtype)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        held = self.inner.shape[0]
        if stop <= held:
            return self.inner.read_rows(start, stop)
        rows = self.mean.expand(stop - max(start, held), *self.mean.shape)
        if start >= held:
            return rows.contiguous()
        return torch.cat([self.inner.read_rows(start, held), rows])


@dataclass(frozen=True)
class KeepRows(Wrapped):
    """The first rows alone: the vocabulary without what a conversion appended."""

    num_rows: int

    @property
    def name(self) -> str:
        """What is done."""
        return self._join(f"drop {self.inner.shape[0] - self.num_rows} appended rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (self.num_rows, *self.inner.shape[1:])

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        return self.inner.read_rows(start, stop)


@dataclass(frozen=True)
class AddBase(Wrapped):
    """Delta weights plus the base's, on the rows that both have."""

    base: TensorOperation

    @property
    def name(self) -> str:
        """What is done."""
        return self._join("add the base")

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read."""
        return self.inner.sources + self.base.sources

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        rows = self.inner.read_rows(start, stop)
        held = self.base.shape[0] if self.base.shape else stop
        if start < held:
            overlap = self.base.read_rows(start, min(stop, held)).to(rows.dtype)
            rows[: overlap.shape[0]] += overlap
        return rows


@dataclass(frozen=True)
class Transpose(Wrapped):
    """A matrix with rows and columns exchanged."""

    @property
    def name(self) -> str:
        """What is done."""
        return self._join("transpose")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.inner.shape[::-1]

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        return load_tensor(self.inner).T[start:stop].contiguous()


@dataclass(frozen=True)
class Reshape(Wrapped):
    """The same values in the same order, in another shape."""

    to: tuple[int, ...]

    @property
    def name(self) -> str:
        """What is done."""
        return self._join("reshape")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.to

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, ...)."""
        return load_tensor(self.inner).reshape(self.to)[start:stop].clone()
