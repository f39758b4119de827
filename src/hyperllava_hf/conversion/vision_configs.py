"""The configuration of a CLIP vision tower, from its folder or from its well-known name."""

from pathlib import Path
from typing import Any

from hyperllava_hf.conversion.config_fields import normalize_vision_config

from ..json_files import load_json

_VIT_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
# LLaVA's towers: a checkpoint that holds such a tower converts without its repository.
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_VIT_LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_VIT_LARGE, "image_size": 224},
}
# Fields by which a tower is recognised.
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")


def load_vision_config(folder: Path) -> dict[str, Any]:
    """Load a tower's configuration from the folder of a CLIP model or of its vision half.

    Args:
        folder: Folder with a `config.json`.

    Returns:
        Complete fields of a `clip_vision_model`.

    Raises:
        ValueError: If there is no such configuration, or it is of another kind of tower.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"found no config.json in {folder}, expected the folder of a CLIP vision tower. Pass "
            "one with --vision-tower, such as openai/clip-vit-large-patch14-336."
        )
    config = load_json(path)
    found = config.get("model_type")
    if found == "clip":
        # Old CLIP repositories state the fields that differ from the default a second time, and
        # transformers lets these win.
        config = {**config.get("vision_config", {}), **(config.get("vision_config_dict") or {})}
    elif found != "clip_vision_model":
        raise ValueError(
            f"{path} has model_type {found!r}, expected 'clip' or 'clip_vision_model': LLaVA-1.5's "
            "vision tower is CLIP. Pass a CLIP folder or Hub id with --vision-tower."
        )
    return normalize_vision_config(config)


def find_vision_config(tower: str | None) -> dict[str, Any]:
    """Find a tower's configuration by the name that a LLaVA configuration gives it.

    Args:
        tower: `mm_vision_tower`: a Hub id, or a path that ends in a known tower's name.

    Returns:
        Complete fields of a `clip_vision_model`.

    Raises:
        ValueError: If the tower is not one of LLaVA's.
    """
    last = _last_part(tower)
    for name, fields in KNOWN_TOWERS.items():
        if last == _last_part(name):
            return normalize_vision_config(fields)
    raise ValueError(
        f"the vision tower is {tower!r}, expected one of {', '.join(KNOWN_TOWERS)}, whose "
        "configuration is known without its folder. Pass the tower's folder or Hub id with "
        "--vision-tower."
    )


def guess_vision_tower_name(vision_config: dict[str, Any]) -> str | None:
    """Name the public tower that a configuration describes.

    Args:
        vision_config: Complete fields of the tower.

    Returns:
        The Hub id, None if the tower is none of LLaVA's.
    """
    for name, fields in KNOWN_TOWERS.items():
        if all(vision_config.get(key) == fields[key] for key in _SHAPE):
            return name
    return None


def _last_part(name: str | None) -> str:
    return (name or "").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
