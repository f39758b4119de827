"""Settings of the image processor: their names, forms and contradictions."""

from typing import Any

import numpy as np
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
AUTO_MAP = {
    "AutoImageProcessor": "image_processing_hyperllava.HyperLlavaImageProcessor",
    "AutoProcessor": "processing_hyperllava.HyperLlavaProcessor",
}
SETTINGS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
)
# Written by transformers beside the settings; they say which class to load, not what it does.
METADATA = (
    "auto_map",
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
    "use_fast",
)


def as_size(size: Any, name: str, edge: str) -> dict[str, int]:
    """Bring a size to a plain dict.

    Args:
        size: An int, a pair (height, width) or a mapping; transformers 5 has a mapping of its own.
        name: Name of the setting, for messages to the user.
        edge: What an int means: "shortest_edge", or "height" for a square.

    Returns:
        {"shortest_edge": n} or {"height": n, "width": m}.

    Raises:
        ValueError: If it is no size.
    """
    if isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif isinstance(size, (int, np.integer)) and not isinstance(size, bool):
        size = {edge: size} if edge == "shortest_edge" else {"height": size, "width": size}
    try:
        found = {key: int(value) for key, value in dict(size).items() if value is not None}
    except (TypeError, ValueError):
        found = {}
    if set(found) not in ({"shortest_edge"}, {"height", "width"}) or min(found.values()) < 1:
        raise ValueError(
            f"{name} is {found or size!r}, expected a positive int, {{'shortest_edge': n}} or "
            f"{{'height': n, 'width': m}}. For LLaVA-1.5 write {name}=336."
        )
    return found


def as_crop_size(crop_size: Any, size: dict[str, int]) -> dict[str, int]:
    """Bring a crop size to a plain dict, or take it from `size`.

    Args:
        crop_size: An int, a pair, a mapping or None.
        size: What images are resized to.

    Returns:
        {"height": n, "width": m}.
    """
    if crop_size is None:
        edge = size.get("shortest_edge")
        return {"height": edge, "width": edge} if edge else dict(size)
    crop = as_size(crop_size, "crop_size", "height")
    edge = crop.get("shortest_edge")
    return {"height": edge, "width": edge} if edge else crop


def as_filter(resample: Any) -> int:
    """Bring a resampling filter to Pillow's number.

    Args:
        resample: Pillow's filter, or its number.

    Returns:
        The number.

    Raises:
        ValueError: If it is none.
    """
    try:
        return int(Image.Resampling(resample))
    except ValueError:
        known = ", ".join(f"{item.value} ({item.name.lower()})" for item in Image.Resampling)
        raise ValueError(f"resample is {resample!r}, expected one of {known}.") from None


def as_numbers(values: Any) -> Any:
    """Bring a row of numbers to a list of floats; what is none is left for `check_settings`.

    Args:
        values: Mean or deviation per channel.

    Returns:
        The list, or the values as they are.
    """
    return [float(value) for value in values] if _are_numbers(values) else values


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float, np.integer, np.floating))
    return is_real and not isinstance(value, bool) and bool(np.isfinite(value))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple, np.ndarray)) and all(map(_is_number, values))


def check_settings(settings: dict[str, Any]) -> None:
    """Report contradictions before any image is read.

    Args:
        settings: Every name of `SETTINGS` with its value.

    Raises:
        ValueError: If settings contradict each other; names all contradictions.
    """
    faults = []
    size, crop = settings["size"], settings["crop_size"]
    rows = (settings["image_mean"], settings["image_std"])
    if not all(_are_numbers(row) and len(row) == 3 for row in rows):
        faults.append(
            f"image_mean is {settings['image_mean']!r} and image_std {settings['image_std']!r}, "
            "expected 3 finite numbers each"
        )
    elif min(settings["image_std"]) <= 0:
        faults.append("image_std must be positive")
    factor = settings["rescale_factor"]
    if not (_is_number(factor) and factor > 0):
        faults.append(f"rescale_factor is {factor!r}, expected a number above 0")
    if settings["do_pad"] and settings["do_resize"] and size.get("height") != size.get("width"):
        faults.append(f"do_pad makes squares, but size is {size}")
    if settings["do_resize"] and not settings["do_center_crop"]:
        fixed = "shortest_edge" not in size or settings["do_pad"]
        edge = size.get("shortest_edge")
        result = {"height": size.get("height", edge), "width": size.get("width", edge)}
        if not fixed:
            faults.append("without do_pad and do_center_crop images would keep their own shapes")
        elif result != crop:
            faults.append(
                f"without do_center_crop images come out as {result}, but crop_size is {crop}"
            )
    if faults:
        raise ValueError(
            f"Image settings that contradict each other: {'; '.join(faults)}. Change one of them."
        )
