"""Recipes: TOML files of settings, each stating its differences from a base.

    base = "instruct-7b"        # a bundled recipe, or a file beside this one
    language_model = "frozen"
    [experts]
    language_guidance_scope = "prompt"

A recipe is data: reading one runs nothing.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from .settings import SETTING_NAMES, TrainingSettings, convert_value, get_kinds

SUFFIX = ".toml"
# Fields of the experts that may be left open; elsewhere "none" is a value.
OPEN_EXPERT_FIELDS = ("language_guidance_layer",)
# What a recipe file may hold beside settings.
BASE, ABOUT = "base", "about"


def get_recipe_folder() -> Path:
    """Return the folder of the bundled recipes."""
    return Path(str(files("hyperllava_hf") / "recipes"))


def list_recipes() -> dict[str, str]:
    """List the bundled recipes.

    Returns:
        What each is for, by name.
    """
    names = sorted(path.stem for path in get_recipe_folder().glob(f"*{SUFFIX}"))
    return {name: read_recipe(name)[ABOUT] for name in names}


def find_recipe(name: str, folder: Path | None = None) -> Path:
    """Find a recipe's file.

    Args:
        name: A path, or the name of a bundled recipe.
        folder: What a relative path is relative to; the working folder when None.

    Returns:
        The file.

    Raises:
        ValueError: If there is none.
    """
    bundled = get_recipe_folder() / f"{name}{SUFFIX}"
    path = (folder or Path()) / Path(name).expanduser()
    if path.suffix == SUFFIX and path.is_file():
        return path
    if Path(name).name == name and bundled.is_file():
        return bundled
    known = sorted(item.stem for item in get_recipe_folder().glob(f"*{SUFFIX}"))
    raise ValueError(
        f"found no recipe {name!r}; expected a .toml file or one of {', '.join(known)}"
        f"{_name_nearest(name, known)}"
    )


def _name_nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {nearest[0]!r}?" if nearest else ""


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
        raise ValueError(f"{path} is no TOML: {error}") from error


def _raise_if_unknown(values: Mapping[str, Any], where: object) -> None:
    known = (*SETTING_NAMES, BASE, ABOUT)
    unknown = [
        f"{name!r}{_name_nearest(name, known).replace(':', ',', 1)}"
        for name in values
        if name not in known
    ]
    if unknown:
        raise ValueError(
            f"{where}: found unknown settings {'; '.join(unknown)} Expected of: "
            f"{', '.join(SETTING_NAMES)}"
        )


def read_recipe(name: str, folder: Path | None = None, seen: tuple[Path, ...] = ()) -> Any:
    """Read a recipe and those it is based on.

    Args:
        name: A path, or the name of a bundled recipe.
        folder: What a relative path is relative to; the working folder when None.
        seen: The recipes that led here.

    Returns:
        Its settings by name, as read, with `about`.

    Raises:
        ValueError: If it is not there, is no TOML, has unknown keys, or is based on itself.
    """
    path = find_recipe(name, folder).resolve()
    if path in seen:
        chain = " -> ".join(item.name for item in (*seen, path))
        raise ValueError(f"{path} is based on itself ({chain}); expected a base that is not")
    values = _read_file(path)
    _raise_if_unknown(values, path)
    values.setdefault(ABOUT, "")
    base = values.pop(BASE, None)
    if base is None:
        return values
    return merge_values(read_recipe(str(base), path.parent, (*seen, path)), values)


def merge_values(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a base; tables are merged key by key.

    Args:
        base: Settings by name.
        changes: What wins.

    Returns:
        Both.
    """
    merged = {**base, **changes}
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping):
            merged[name] = {**base[name], **value}
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Read `name=value`; the value is TOML, or a bare string.

    Args:
        text: Such as `learning_rate=1e-4`, `experts.expert_hidden_dim=8` or `max_steps=none`.

    Returns:
        The setting by its name, in its table if it has one.

    Raises:
        ValueError: If there is no name or no such setting.
    """
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not name:
        raise ValueError(f"--set {text!r}: expected name=value, such as learning_rate=1e-4")
    table, _, key = name.partition(".")
    if table in ("base", "about"):
        raise ValueError(f"--set {text!r}: {table} belongs into a recipe's file")
    _raise_if_unknown({table: None}, f"--set {text!r}")
    try:
        read = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        read = {"value": value}
    if len(read) > 1:
        raise ValueError(f"--set {text!r}: found several lines, expected one setting")
    parsed = read["value"]
    if key:
        if parsed == "none" and key in OPEN_EXPERT_FIELDS:
            parsed = None
        if key == "language_expert_layers" and re.fullmatch(r"[0-9]+(,[0-9]+)*", value):
            parsed = [int(block) for block in value.split(",")]
        return {table: {key: parsed}}
    if parsed == "none" and type(None) in get_kinds(table):
        parsed = None
    if tuple in get_kinds(table) and isinstance(parsed, str):
        parsed = [] if parsed in ("", "none") else parsed.split(",")
    return {table: parsed}


def build_settings(
    recipe: str,
    overrides: Sequence[str] = (),
    stage_wanted: str | None = None,
    **changes: Any,
) -> TrainingSettings:
    """Read a recipe, lay overrides over it, and check the whole.

    Args:
        recipe: A path, or the name of a bundled recipe.
        overrides: Texts `name=value`, as of `--set`.
        stage_wanted: The stage that the recipe must be of; any when None.
        **changes: Settings by name, which win over both.

    Returns:
        The settings.

    Raises:
        ValueError: If anything is wrong; every wrong setting is named.
    """
    values = read_recipe(recipe)
    for text in overrides:
        values = merge_values(values, parse_override(text))
    values = merge_values(values, changes)
    values.pop(ABOUT, None)
    if "stage" not in values:
        raise ValueError(f"{recipe} names no stage; expected stage = 'align' or 'instruct'")
    settings = TrainingSettings(**{k: convert_value(k, v) for k, v in values.items()})
    settings.raise_if_invalid()
    if stage_wanted not in (None, settings.stage):
        raise ValueError(
            f"{recipe} is a recipe of {settings.stage!r}, expected one of {stage_wanted!r}; "
            f"run `hyperllava train {settings.stage}`, or `hyperllava train recipes` for the list"
        )
    return settings
