"""Bring the tensors of a whole source together under our keys, each with what is done to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint_files import raise_if_index_differs
from .key_tables import ORIGINAL, SOURCE_TABLES, Row, match_row
from .lora_merge import merge_lora
from .operations import AddBase, Copy, TensorOperation
from .rules import ForkRules, apply_operations
from .source_parts import SourceParts
from .tensor_files import StoredTensor, list_all_tensors

TOWER = "model.vision_tower."


@dataclass
class Gathered:
    """A source's tensors.

    Attributes:
        tensors: what produces each tensor, by our key.
        source_keys: the key in the source, by our key.
        dropped: keys that are left out, with the reason.
        unknown: keys that the layout's table does not know, with the file they stand in.
    """

    tensors: dict[str, TensorOperation] = field(default_factory=dict)
    source_keys: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Path] = field(default_factory=dict)

    def take(self, stored: Mapping[str, StoredTensor], table: tuple[Row, ...]) -> None:
        """Rename the tensors of some files.

        Args:
            stored: the tensors by their names in the files.
            table: the table of their layout.

        Raises:
            ValueError: if two of them become the same key.
        """
        for key, tensor in stored.items():
            found = match_row(table, key)
            if found is None:
                self.unknown[key] = tensor.path
                continue
            row, target = found
            if target is None:
                self.dropped[key] = row.reason
                continue
            if target in self.source_keys:
                raise ValueError(
                    f"{self.source_keys[target]} and {key} are both {target}; expected one layout "
                    "in a checkpoint: remove the files that do not belong to it"
                )
            self.tensors[target] = apply_operations(row.operations, Copy(tensor), key)
            self.source_keys[target] = key

    def add(self, other: "Gathered", keys: Iterable[str] | None = None) -> None:
        """Add another's tensors where this one has none.

        Args:
            other: the other.
            keys: which of its keys; None adds all.
        """
        for key in list(other.tensors if keys is None else keys):
            if key not in self.tensors:
                self.tensors[key] = other.tensors[key]
                self.source_keys[key] = other.source_keys[key]
        self.dropped = {**other.dropped, **self.dropped}
        self.unknown = {**other.unknown, **self.unknown}


def gather(parts: SourceParts, rules: ForkRules | None = None) -> Gathered:
    """Gather a source's tensors with those of its base and its vision tower.

    Args:
        parts: the source's files.
        rules: what a fork calls its experts.

    Returns:
        The tensors under our keys.

    Raises:
        ValueError: if a file is damaged, an index differs from its shards, or parts do not fit.
    """
    result = Gathered()
    if parts.layout == "lora":
        assert parts.base is not None
        assert parts.non_lora is not None
        base = gather(parts.base)
        base.tensors = merge_lora(base.tensors, parts)
        result.take(list_all_tensors((parts.non_lora,)), SOURCE_TABLES["non_lora"])
        result.add(base)
    else:
        stored = list_all_tensors(parts.weights)
        raise_if_index_differs(stored)
        table = SOURCE_TABLES[parts.layout]
        if parts.layout == "fork":
            table = ORIGINAL + (rules or ForkRules()).rows
        result.take(stored, table)
        if parts.layout == "delta":
            assert parts.base is not None
            add_base(result, gather(parts.base))
        elif parts.base is not None:
            result.add(gather(parts.base))
    has_tower = any(key.startswith(TOWER) for key in result.tensors)
    if parts.vision is not None and not has_tower:
        result.add(gather(parts.vision))
    return result


def add_base(delta: Gathered, base: Gathered) -> None:
    """Add a base to delta weights, on the rows that both have.

    Args:
        delta: the delta weights; changed in place.
        base: the base.

    Raises:
        ValueError: if a tensor of the base has no delta, or more rows or another width.
    """
    absent = sorted(base.tensors.keys() - delta.tensors.keys())
    if absent:
        raise ValueError(
            f"the delta lacks {absent[0]}, which the base has ({len(absent)} such keys); expected "
            "the base that it was made from: pass it as --base-llm"
        )
    for key, tensor in base.tensors.items():
        difference = delta.tensors[key]
        fits = difference.shape[1:] == tensor.shape[1:] and (
            not tensor.shape or difference.shape[0] >= tensor.shape[0]
        )
        if not fits:
            raise ValueError(
                f"the delta of {key} has shape {difference.shape} and the base {tensor.shape}; "
                "expected the same, or more rows in the delta: pass the base that it was made from"
            )
        delta.tensors[key] = AddBase(difference, tensor)
