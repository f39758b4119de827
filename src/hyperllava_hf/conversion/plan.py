"""Decide, before anything is written, what every tensor of the result is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling import HyperLlavaConfig
from ..modeling.checkpoint_hyperllava import is_expert_key
from ..modeling.configuration_hyperllava import EXPERT_FIELDS
from .experts_files import ExpertsFile, are_identity, hash_base
from .gathering import Gathered
from .key_tables import TARGET_TABLES, name_some, rename_key
from .meta_model import MetaModel
from .operations import AppendMeanRows, Cast, Constant, KeepRows, TensorOperation, count_bytes
from .source_parts import SourceParts

VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")
DECODER = "model.language_model."
NO_EXPERTS = {"visual_expert": "none", "language_expert_layers": "none"}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result: where it comes from and what is done to it.

    Attributes:
        source: its key in the source; empty for a fresh expert.
        target: its key in the result.
        shape: its shape.
        dtype: its dtype.
        num_bytes: its bytes.
        operation: what is done.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    operation: str


@dataclass
class Plan:
    """What a conversion will write.

    Attributes:
        config: the result's configuration, also of one that is written without experts.
        tensors: what produces each tensor, by our key.
        target_keys: the key in the result, by our key.
        source_keys: the key in the source, by our key.
        notes: what the user should know.
        identity: whether the experts change nothing.
    """

    config: HyperLlavaConfig
    tensors: dict[str, TensorOperation]
    target_keys: dict[str, str]
    source_keys: dict[str, str]
    notes: list[str] = field(default_factory=list)
    identity: bool = True

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(count_bytes(tensor) for tensor in self.tensors.values())

    def get_outputs(self) -> dict[str, TensorOperation]:
        """Return what produces each tensor, by its key in the result, as the source is read best.

        A safetensors file may hold its tensors in any order; in the order of the source's files a
        disk reads ahead of us.
        """

        def place(key: str) -> tuple[bool, str, int]:
            sources = self.tensors[key].sources
            return (
                not sources,
                *((str(sources[0].path), sources[0].offset) if sources else ("", 0)),
            )

        return {self.target_keys[key]: self.tensors[key] for key in sorted(self.tensors, key=place)}

    def list_planned(self) -> list[PlannedTensor]:
        """List every tensor of the result."""
        return [
            PlannedTensor(
                self.source_keys.get(key, ""),
                self.target_keys[key],
                tuple(tensor.shape),
                name_dtype(tensor.dtype),
                count_bytes(tensor),
                tensor.name,
            )
            for key, tensor in self.tensors.items()
        ]


def name_dtype(dtype: torch.dtype) -> str:
    """Name a dtype as configurations do: float16 and so on."""
    return str(dtype).removeprefix("torch.")


def choose_dtype(tensors: Mapping[str, TensorOperation], asked: str | None) -> torch.dtype:
    """Choose the base's dtype: the one asked for, else the decoder's.

    Args:
        tensors: the source's tensors by our keys.
        asked: name of a dtype, or None.

    Returns:
        The dtype.

    Raises:
        ValueError: if none was asked for and the decoder's tensors have several.
    """
    if asked is not None:
        return getattr(torch, asked)
    found: dict[torch.dtype, list[str]] = {}
    for key, tensor in tensors.items():
        if (key.startswith(DECODER) or key in VOCABULARY) and not is_expert_key(key):
            found.setdefault(tensor.dtype, []).append(key)
    if len(found) > 1:
        counts = "; ".join(
            f"{name_dtype(dtype)}: {len(keys)} tensors such as {keys[0]}"
            for dtype, keys in found.items()
        )
        raise ValueError(
            f"the decoder's weights have several dtypes ({counts}); expected one: choose it with "
            "--dtype (dtype=...)"
        )
    return next(iter(found), torch.float32)


def cast_tensors(
    tensors: Mapping[str, TensorOperation], dtype: torch.dtype, keeps_experts: bool
) -> dict[str, TensorOperation]:
    """Bring tensors to one dtype.

    Args:
        tensors: tensors by our keys.
        dtype: the dtype.
        keeps_experts: whether the experts keep theirs.

    Returns:
        The tensors, cast where they differ.
    """
    return {
        key: tensor
        if tensor.dtype == dtype or (keeps_experts and is_expert_key(key))
        else Cast(tensor, dtype)
        for key, tensor in tensors.items()
    }


def resize_vocabulary(
    tensors: dict[str, TensorOperation], num_rows: int
) -> dict[str, TensorOperation]:
    """Give embedding and head the rows that the tokenizer needs.

    Args:
        tensors: tensors by our keys.
        num_rows: rows of the result.

    Returns:
        The tensors, with rows appended or dropped at the end.
    """
    resized = dict(tensors)
    for key in VOCABULARY:
        tensor = tensors.get(key)
        if tensor is not None and tensor.shape[0] < num_rows:
            resized[key] = AppendMeanRows(tensor, num_rows)
        elif tensor is not None and tensor.shape[0] > num_rows:
            resized[key] = KeepRows(tensor, num_rows)
    return resized


def raise_if_keys_differ(
    gathered: Gathered, expected: Mapping[str, tuple[int, ...]], parts: SourceParts
) -> None:
    """Check the source's tensors against what the model has, before experts are added.

    Args:
        gathered: the source's tensors.
        expected: shape of each of the model's tensors by our key.
        parts: the source's files.

    Raises:
        ValueError: if a key is unknown, a base key is missing or a shape is wrong.
    """
    surplus = [key for key in gathered.tensors if key not in expected]
    unknown = sorted([*gathered.unknown, *(gathered.source_keys[key] for key in surplus)])
    missing = sorted(
        key for key in expected if key not in gathered.tensors and not is_expert_key(key)
    )
    if unknown:
        raise ValueError(_describe_unknown(unknown, gathered, expected, parts))
    if missing:
        raise ValueError(
            f"{len(missing)} weights are missing from {parts.folder}: {name_some(missing)} (our "
            "names); expected a whole checkpoint: check that all its files are there and that "
            "config.json is its own"
        )
    raise_if_vocabularies_differ(gathered)
    for key, shape in expected.items():
        tensor = gathered.tensors.get(key)
        if tensor is None:
            continue
        found = tuple(tensor.shape)
        # The vocabulary's rows are brought to the tokenizer's number, so they may differ.
        if found != shape and not (key in VOCABULARY and found[1:] == shape[1:]):
            raise ValueError(
                f"{gathered.source_keys[key]} has shape {found}, expected {shape} by config.json; "
                "expected weights and configuration of one model"
            )


def raise_if_vocabularies_differ(gathered: Gathered) -> None:
    """Check that embedding and head have a row for the same tokens.

    Args:
        gathered: the source's tensors.

    Raises:
        ValueError: if their numbers of rows differ.
    """
    rows = {
        gathered.source_keys[key]: gathered.tensors[key].shape[0]
        for key in VOCABULARY
        if key in gathered.tensors
    }
    if len(set(rows.values())) > 1:
        found = " and ".join(f"{key} {count}" for key, count in rows.items())
        raise ValueError(f"found rows of the vocabulary: {found}; expected the same number in both")


def _describe_unknown(
    unknown: list[str],
    gathered: Gathered,
    expected: Mapping[str, tuple[int, ...]],
    parts: SourceParts,
) -> str:
    text = f"{len(unknown)} keys of {parts.folder} are unknown in the layout {parts.layout!r}: "
    if parts.layout != "fork":
        return text + (
            f"{name_some(unknown)}; expected that layout's names: name another layout with "
            "--layout, or the fork's names with --layout fork --rules FILE"
        )
    # All of them, since the user writes a rule for each.
    open_keys = sorted(
        key for key in expected if is_expert_key(key) and key not in gathered.tensors
    )
    shapes = ", ".join(f"{key} {list(expected[key])}" for key in open_keys)
    return text + (
        f"{', '.join(unknown)}; expected names for these experts: {shapes or 'none are open'}. "
        "Write a [[rename]] for each unknown key into a TOML file and pass it as --rules FILE"
    )


def build_experts(
    choice: str | ExpertsFile | None,
    held: dict[str, TensorOperation],
    model: MetaModel,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, TensorOperation]:
    """Build the result's experts.

    Args:
        choice: "init", "none", a file, or None to keep the source's or else initialise them.
        held: the source's experts by our keys.
        model: the result's model.
        dtype: dtype of fresh experts.
        seed: seed of fresh experts.

    Returns:
        The experts by our keys.

    Raises:
        ValueError: if experts that are kept or read do not fit the configuration.
    """
    expected = {key: shape for key, shape in model.get_shapes().items() if is_expert_key(key)}
    if isinstance(choice, ExpertsFile):
        experts = choice.tensors
    elif choice is None and held:
        experts = held
    else:
        fresh = model.build_fresh_experts(dtype, seed) if expected else {}
        experts = {key: Constant(value) for key, value in fresh.items()}
    wrong = sorted(experts.keys() ^ expected.keys()) or sorted(
        key for key in expected if tuple(experts[key].shape) != expected[key]
    )
    if wrong:
        raise ValueError(
            f"{len(wrong)} experts do not fit the configuration: {name_some(wrong)}; expected the "
            "expert fields that they were made with: leave the expert options out, or start anew "
            "with --experts init"
        )
    return experts


def choose_expert_fields(
    choice: str | ExpertsFile | None,
    held: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Choose the expert fields of the result's configuration.

    Args:
        choice: as in `build_experts`.
        held: the source's expert fields, as far as it has them.
        given: the user's.

    Returns:
        Every expert field.

    Raises:
        ValueError: if the user names a field that is none.
    """
    given = dict(given or {})
    unknown = sorted(given.keys() - EXPERT_FIELDS.keys())
    if unknown:
        raise ValueError(
            f"found the expert field {unknown[0]!r}; expected some of {', '.join(EXPERT_FIELDS)}"
        )
    fields = {**EXPERT_FIELDS, **{name: held[name] for name in EXPERT_FIELDS if name in held}}
    if isinstance(choice, ExpertsFile):
        fields |= choice.fields
    fields |= given
    return {**fields, **NO_EXPERTS} if choice == "none" else fields


def raise_if_experts_lost(
    choice: str | ExpertsFile | None, held: Mapping[str, TensorOperation], may_drop: bool
) -> None:
    """Check that no trained experts are dropped unasked.

    Args:
        choice: as in `build_experts`.
        held: the source's experts.
        may_drop: whether the user allows it.

    Raises:
        ValueError: if trained experts would be dropped.
    """
    if choice is not None and held and not may_drop and not are_identity(held):
        raise ValueError(
            f"the source has {len(held)} trained expert tensors, which the result would lose; "
            "expected --drop-experts (drop_experts=True) if that is meant. To keep them in a file "
            "first: hyperllava experts extract"
        )


def raise_if_base_differs(file: ExpertsFile, base: Mapping[str, TensorOperation]) -> None:
    """Check that experts get the base that they belong to.

    Args:
        file: the experts.
        base: the result's base by our keys.

    Raises:
        ValueError: if it is another base.
    """
    found = hash_base(base)
    if found != file.base_identity:
        dtypes = ", ".join(sorted({name_dtype(tensor.dtype) for tensor in base.values()}))
        raise ValueError(
            f"{file.path} belongs to the base {file.base_identity[:16]}..., but this base is "
            f"{found[:16]}... (in {dtypes}); expected the base that the experts were trained on, "
            "in its dtype: name that one, or its dtype with --dtype"
        )


def rename_for_target(tensors: Mapping[str, TensorOperation], to: str) -> dict[str, str]:
    """Name every tensor for the result's layout.

    Args:
        tensors: tensors by our keys.
        to: "hyperllava", "llava-hf" or "llava".

    Returns:
        The key in the result, by our key.
    """
    return {key: rename_key(TARGET_TABLES[to], key) for key in tensors}


def summarize_dropped(dropped: Mapping[str, str]) -> list[str]:
    """Say which keys were left out, a line a reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in dropped.items():
        by_reason.setdefault(reason, []).append(key)
    return [
        f"left out {len(keys)} key{'s' if len(keys) > 1 else ''} such as {keys[0]}: {reason}"
        for reason, keys in by_reason.items()
    ]
