r"""The rules by which a LLaVA fork's experts get our names: a table that a user writes, in TOML.

    [experts]                        # HyperLlavaConfig's expert fields, where they are not default
    expert_hidden_dim = 16

    [[rename]]
    from = 'model\.layers\.(\d+)\.adapter\.W_e'     # regular expression for a whole key
    to = 'model.language_model.layers.\1.language_expert.encoder_weight'
    operations = ["transpose"]       # or "reshape: 64, 16, 4096", in this order

    [[rename]]
    from = 'model\.debug_counter'
    drop = "a counter of the training loop"

Without rules the fork is taken to use our names under the original's prefixes
(`model.layers.N.language_expert.*`, `model.mm_projector.visual_expert.*`).
"""

import re
import tomllib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..modeling.configuration_hyperllava import EXPERT_FIELDS
from .key_tables import FORK_EXPERTS, Row
from .operations import Reshape, TensorOperation, Transpose

OPERATIONS = "'transpose' or 'reshape: 3, 4, 5'"


@dataclass(frozen=True)
class ForkRules:
    """What a fork calls its experts, and which they are.

    Attributes:
        rows: the rows that join the original layout's table.
        expert_fields: expert fields of the configuration.
    """

    rows: tuple[Row, ...] = FORK_EXPERTS
    expert_fields: dict[str, Any] = field(default_factory=dict)


def load_rules(path: Path) -> ForkRules:
    """Load a table of rules.

    Args:
        path: the TOML file.

    Returns:
        The rules.

    Raises:
        ValueError: if the file is missing, no TOML or says something that is not understood.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no TOML file ({error}); expected a table of rules") from error
    unknown = sorted(content.keys() - {"experts", "rename"})
    if unknown:
        raise ValueError(f"{path} holds {unknown[0]!r}; expected [experts] and [[rename]] alone")
    fields = content.get("experts", {})
    foreign = sorted(set(fields) - EXPERT_FIELDS.keys()) if isinstance(fields, dict) else [fields]
    if foreign:
        raise ValueError(
            f"{path}: [experts] holds {foreign[0]!r}; expected some of {', '.join(EXPERT_FIELDS)}"
        )
    rows = tuple(_parse_row(entry, path) for entry in content.get("rename", []))
    return ForkRules(rows or FORK_EXPERTS, dict(fields))


def _parse_row(entry: dict[str, Any], path: Path) -> Row:
    unknown = sorted(entry.keys() - {"from", "to", "drop", "operations"})
    if unknown or "from" not in entry or ("to" in entry) == ("drop" in entry):
        raise ValueError(
            f"{path}: a [[rename]] holds {sorted(entry)}; expected from, either to or drop, and "
            "operations if there are any"
        )
    operations = entry.get("operations", [])
    if not isinstance(operations, list) or not all(_is_operation(item) for item in operations):
        raise ValueError(f"{path}: operations is {operations!r}; expected a list of {OPERATIONS}")
    try:
        groups = re.compile(entry["from"]).groups
        re.compile(entry["from"]).sub(entry.get("to", ""), "")
    except (re.error, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: from = {entry['from']!r}, to = {entry.get('to')!r} do not fit together "
            f"({error}); expected a regular expression and its groups as \\1, \\2"
        ) from error
    named = [int(number) for number in re.findall(r"\\(\d+)", entry.get("to", ""))]
    if named and max(named) > groups:
        raise ValueError(
            f"{path}: to = {entry['to']!r} names group {max(named)}, but from = {entry['from']!r} "
            f"has {groups}; expected as many parentheses"
        )
    return Row(entry["from"], entry.get("to"), entry.get("drop", ""), tuple(operations))


def _is_operation(text: Any) -> bool:
    return isinstance(text, str) and (
        text == "transpose" or re.fullmatch(r"reshape:\s*\d+(\s*,\s*\d+)*", text) is not None
    )


def apply_operations(names: tuple[str, ...], tensor: TensorOperation, key: str) -> TensorOperation:
    """Apply a row's operations.

    Args:
        names: the operations, in order.
        tensor: the tensor.
        key: its key, for the error.

    Returns:
        What produces the result.

    Raises:
        ValueError: if the tensor has not as many values as a shape asks for.
    """
    for name in names:
        if name == "transpose":
            tensor = Transpose(tensor)
            continue
        shape = tuple(int(part) for part in name.partition(":")[2].split(","))
        if prod(shape) != prod(tensor.shape):
            raise ValueError(
                f"{key} has shape {tensor.shape}; expected as many values as {name!r} asks for"
            )
        tensor = Reshape(tensor, shape)
    return tensor
