"""Turn whatever a person calls an image into one upright 8-bit RGB Pillow image.

Accepted: a path, an http(s) URL, a data: URL or bare base64 text, raw bytes, an open binary file, a
Pillow image, a NumPy array or torch tensor (HWC, CHW or grayscale), and the {"bytes", "path"}
record of the `datasets` library. Whatever cannot be read becomes one ValueError that says what was
found, what was expected and what to do.

Unusual on purpose:

- Alpha is dropped, not composited: LLaVA calls `convert("RGB")`, and the pixels have to be LLaVA's.
- 16-bit samples are scaled to 8 bits (65535 becomes 255). Pillow alone would clip them to white.
  Only what comes from a URL is converted by transformers' own loader, and so by Pillow's rule.
- EXIF orientation is applied, so that a phone's picture arrives the way up that its owner sees it.
"""

import base64
import binascii
import io
import os
import re
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import load_image

from .image_arrays_hyperllava import image_from_array, to_uint8

# JPEG's own limit; beyond it a padded square would have more than four billion pixels.
MAX_SIDE = 65535
URL_TIMEOUT_SECONDS = 30.0
EXPECTED = (
    "a path, an http(s) or data: URL, base64 text, bytes, a PIL image, a NumPy array or a torch "
    "tensor"
)

_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_ORIENTATION = 0x0112  # EXIF tag
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class _Refused(ValueError):
    """An image that is whole, but not to be decoded."""


def load_rgb_image(source: Any, input_data_format: str | None = None) -> Image.Image:
    """Load one image and convert it to RGB.

    Args:
        source: The image: path, URL, data: URL, base64 text, bytes, binary file, PIL image, array,
            tensor, or a dict with a "bytes", "path", "url", "base64" or "image" entry.
        input_data_format: "channels_first" or "channels_last" for arrays whose layout cannot be
            told from their shape; None decides from the shape.

    Returns:
        The upright image in mode "RGB".

    Raises:
        ValueError: If the source is no image, is damaged, is missing or is too large.
    """
    if isinstance(source, dict):
        source = _unpack_record(source)
    if isinstance(source, torch.Tensor):
        if input_data_format is None and source.ndim == 3 and source.shape[0] in (1, 3, 4):
            input_data_format = "channels_first"  # torch's custom, where NumPy's is the other
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray):
        image = image_from_array(source, input_data_format)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, (str, os.PathLike)):
        image = _open_text(os.fspath(source))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        image = _decode(bytes(source), f"{len(source)} bytes")
    elif hasattr(source, "read"):
        image = _decode(source.read(), "an open file")
    else:
        raise ValueError(
            f"found a {type(source).__name__}, expected {EXPECTED}. Pass one of these."
        )
    return _to_rgb(image)


def _unpack_record(record: dict) -> Any:
    """Take the image out of a {"bytes": ..., "path": ...} record or a chat content part."""
    for key in ("image", "bytes", "path", "url", "base64"):
        if record.get(key) is not None:
            return record[key]
    raise ValueError(
        f"found a dict with keys {sorted(map(str, record))}, expected one of 'image', 'bytes', "
        f"'path', 'url', 'base64'. Pass {EXPECTED}."
    )


def _open_text(text: str) -> Image.Image:
    """Open what a piece of text names: a URL, a data: URL, a file, or base64 itself."""
    shown = text if len(text) <= 120 else text[:100] + "..."
    if text.startswith(("http://", "https://")):
        return _fetch(text, shown)
    if text.startswith("data:"):
        header, comma, payload = text.partition(",")
        if not comma or ";base64" not in header:
            raise ValueError(
                f"found the data: URL {shown!r}, expected 'data:image/png;base64,...'. Encode the "
                "file in base64."
            )
        return _decode(_decode_base64(payload, shown), "a data: URL")
    # A path longer than the system allows makes stat itself fail; such text can only be base64.
    path = os.path.expanduser(text.removeprefix("file://")) if len(text) < 4096 else ""
    if path and os.path.isdir(path):
        raise ValueError(f"{shown!r} is a directory, expected an image file. Name a file in it.")
    if path and os.path.exists(path):
        try:
            with open(path, "rb") as stream:
                return _decode(stream.read(), repr(shown))
        except OSError as error:
            raise ValueError(
                f"{shown!r} cannot be read ({error.strerror}), expected an image file. Check its "
                "permissions."
            ) from error
    if len(text) >= 64 and "." not in text and _BASE64_TEXT.fullmatch(text):
        return _decode(_decode_base64(text, shown), "base64 text")
    raise ValueError(f"there is no file {shown!r}; expected {EXPECTED}. Check the path.")


def _decode_base64(payload: str, shown: str) -> bytes:
    try:
        return base64.b64decode(payload, validate=False)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{shown!r} is not valid base64 ({error}), expected the bytes of an image. Encode the "
            "file again."
        ) from error


def _fetch(url: str, shown: str) -> Image.Image:
    """Fetch through transformers, whose client differs by line; every failure is one error."""
    try:
        return load_image(url, timeout=URL_TIMEOUT_SECONDS)
    except Exception as error:
        # requests and httpx share no exception class but Exception.
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(
            f"the image at {shown!r} could not be fetched ({reason}). Check the address and the "
            "network, or download the file and pass its path."
        ) from error


def _decode(data: bytes, shown: str) -> Image.Image:
    """Decode an encoded image; the size is checked before any pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(image)
        if image.format == "EPS":
            # Pillow would start Ghostscript, a program, on the file.
            raise _Refused(f"{shown} is an EPS document, expected an image. Convert it to PNG.")
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{shown} ({len(data)} bytes) is no image that Pillow can read; expected PNG, JPEG, "
            "WebP, GIF, BMP or TIFF. Convert the file to PNG or JPEG."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{shown} is too large to be safe: {error} Resize it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except _Refused:
        raise
    except Exception as error:
        # Decoders of damaged files raise whatever they stumble over, RuntimeError among it.
        raise ValueError(
            f"{shown} begins like an image but is damaged or cut short ({error}); expected a "
            "complete file. Copy or download it again."
        ) from error
    return image


def _check_size(image: Image.Image) -> None:
    if min(image.size) < 1 or max(image.size) > MAX_SIDE:
        width, height = image.size
        raise _Refused(
            f"found an image of {width} x {height} pixels, expected 1 to {MAX_SIDE} pixels per "
            "side. Resize or crop it."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn upright and convert to RGB as LLaVA does, but without clipping deep samples."""
    _check_size(image)
    try:
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"the image is damaged or cut short ({error}); expected a complete file. Copy or "
            "download it again."
        ) from error
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        image = _from_deep_samples(image)
    if image.mode == "P" and "transparency" in image.info:
        # The colours of a direct conversion, without Pillow's warning about the dropped alpha.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_samples(image: Image.Image) -> Image.Image:
    """Scale a 16-bit, 32-bit integer or float image to 8 bits."""
    samples = np.asarray(image)
    if image.mode == "I":
        # Pillow hands 16-bit grayscale out as 32-bit integers in some decoders.
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError(
                f"found 32-bit samples from {samples.min()} to {samples.max()}, expected 0..65535. "
                "Scale the image to 8 or 16 bits."
            )
        # By range, as for an array of wide integers: 16 bits that never pass 255 would be black.
        samples = samples.astype(np.uint8 if samples.max() <= 255 else np.uint16)
    elif image.mode != "F":
        samples = samples.astype(np.uint16)
    return Image.fromarray(to_uint8(samples))
