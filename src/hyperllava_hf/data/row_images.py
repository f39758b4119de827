"""The images of a row: found inside the image folder and nowhere else, decoded where they are used.

A path is joined with the image folder and held against it by its letters: neither ".." nor an
absolute path leaves the folder. Without an image folder, paths are relative to the file's own
folder and absolute ones are accepted, since then the file is the only word on where images lie.
Links inside the folder are followed, because people lay out image folders with them. A URL is no
path: nothing is ever fetched.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from PIL import Image

from ..processing.image_loading_hyperllava import load_rgb_image
from .data_source import DataSource
from .row_faults import RowFault

# A file is read whole before it is decoded.
MAX_FILE_BYTES = 1 << 30


def resolve_image_path(path: str, source: DataSource) -> str:
    """Find the file that a row's image path means.

    Args:
        path: As the row gives it.
        source: Where the row is from.

    Returns:
        The path of a regular file.

    Raises:
        RowFault: If the path leads out of the image folder, or no file of an image's size is there.
    """
    base = source.base_folder
    if os.path.isabs(path):
        if source.image_folder is not None:
            raise RowFault(
                f"the image path {_show(path)} is absolute, expected one relative to the image "
                f"folder {base}",
                "image_path",
            )
        joined = path
    else:
        folder = os.path.abspath(base)
        joined = os.path.normpath(os.path.join(folder, path))
        if joined != folder and not joined.startswith(os.path.join(folder, "")):
            raise RowFault(
                f"the image path {_show(path)} leads out of {base}, expected a file in it",
                "image_path",
            )
    try:
        found = os.stat(joined)
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL in it.
        reason = getattr(error, "strerror", None) or error
        raise RowFault(
            f"there is no image {_show(path)} in {base} ({reason}), expected an image file",
            "missing_image",
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise RowFault(
            f"the image path {_show(path)} in {base} is no file, expected an image file",
            "missing_image",
        )
    if found.st_size > MAX_FILE_BYTES:
        raise RowFault(
            f"the image {_show(path)} in {base} has {found.st_size:,} bytes, expected at most "
            f"{MAX_FILE_BYTES:,}",
            "broken_image",
        )
    return joined


def check_image_places(images: list[Any], source: DataSource) -> None:
    """Check that the images of a row are there, without opening them.

    Args:
        images: As the row gives them.
        source: Where the row is from.

    Raises:
        RowFault: If one is not there.
    """
    for image in images:
        place = _get_content(image)
        if isinstance(place, str) and not _is_remote(image):
            resolve_image_path(place, source)


def load_row_images(images: list[Any], source: DataSource) -> list[Image.Image]:
    """Decode the images of a row.

    Args:
        images: As the row gives them.
        source: Where the row is from.

    Returns:
        Upright RGB images.

    Raises:
        RowFault: If one is not there or cannot be decoded.
    """
    return [_load_image(image, place, source) for place, image in enumerate(images)]


def _load_image(image: Any, place: int, source: DataSource) -> Image.Image:
    content = _get_content(image)
    shown = f"image {place}"
    try:
        if isinstance(content, str):
            if _is_remote(image):
                content = _fetch_with_datasets(image)
            else:
                shown += f" ({_show(content)})"
                with open(resolve_image_path(content, source), "rb") as stream:
                    content = stream.read()
        return load_rgb_image(content)
    except RowFault:
        raise
    except OSError as error:
        raise RowFault(
            f"{shown} cannot be read ({error}), expected a readable image file", "broken_image"
        ) from None
    except ValueError as error:
        raise RowFault(f"{shown}: {error}", "broken_image") from None


def _get_content(image: Any) -> Any:
    """What a {"bytes", "path"} record holds; bytes come first."""
    if isinstance(image, dict):
        return image["bytes"] if image.get("bytes") is not None else image.get("path")
    return image


def _is_remote(image: Any) -> bool:
    """Whether `datasets` refers to a file inside an archive or on the Hub, as its streams do."""
    return isinstance(image, RemoteImage)


class RemoteImage(dict):
    """A {"bytes", "path"} record that `datasets` made and that it alone can open."""


def _fetch_with_datasets(record: RemoteImage) -> Image.Image:
    from datasets import Image as ImageFeature  # type: ignore[import-untyped]

    try:
        return ImageFeature().decode_example(dict(record))
    except Exception as error:
        # fsspec's file systems and Pillow share no exception class but Exception.
        raise ValueError(
            f"cannot be fetched ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _show(path: str) -> str:
    return repr(path if len(path) <= 120 else path[:100] + "...")
