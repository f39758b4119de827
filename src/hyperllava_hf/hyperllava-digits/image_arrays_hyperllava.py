"""Turn arrays of pixels, in the layouts and number types that people use, into images."""

from typing import Any

import numpy as np
from PIL import Image


def flatten_images(images: Any) -> list[Any]:
    """Flatten nested lists of images and split stacked arrays, keeping their order.

    Args:
        images: One image, or lists or tuples of images to any depth; a 4-dimensional array is a
            stack.

    Returns:
        The images.
    """
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def image_from_array(array: np.ndarray, input_data_format: str | None = None) -> Image.Image:
    """Convert an array of pixels to a Pillow image.

    Args:
        array: Shape (H, W), (H, W, C) or (C, H, W) with 1, 2, 3 or 4 channels; bool, 8-bit or
            16-bit integers, other integers within 0..255, or floats within 0..1.
        input_data_format: "channels_first", "channels_last" or None to decide from the shape.

    Returns:
        The image in mode "L", "LA", "RGB" or "RGBA".

    Raises:
        ValueError: If the shape or the values are not those of one image.
    """
    pixels = to_uint8(_to_channels_last(array, input_data_format))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_channels_last(array: np.ndarray, input_data_format: str | None) -> np.ndarray:
    """Bring an array to (H, W) or (H, W, C)."""
    if input_data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(
            f"input_data_format is {input_data_format!r}, expected 'channels_first' or "
            "'channels_last'. Leave it out to have the layout told from the shape."
        )
    shape = tuple(array.shape)
    is_image = array.ndim in (2, 3) and array.size > 0
    if is_image and array.ndim == 3:
        first = input_data_format == "channels_first" or (
            # (3, 5, 3) can be either; the trailing axis wins, as NumPy's and Pillow's layout.
            input_data_format is None and array.shape[-1] not in (1, 2, 3, 4)
        )
        array = np.moveaxis(array, 0, -1) if first else array
        is_image = array.shape[-1] in (1, 2, 3, 4)
        array = array[..., 0] if is_image and array.shape[-1] == 1 else array
    if not is_image:
        raise ValueError(
            f"found an array of shape {shape}, expected (height, width), (height, "
            "width, channels) or (channels, height, width) with 1 to 4 channels and at least one "
            "pixel. Reshape it, or pass several images as a list."
        )
    return array


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Scale any supported sample type to 0..255.

    Args:
        array: Samples of any shape: bool, 8-bit or 16-bit integers, other integers within 0..255,
            or floats within 0..1.

    Returns:
        The samples as uint8, of the same shape.

    Raises:
        ValueError: If the values are outside the range of their type.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _sixteen_to_eight_bits(array)
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"found an array of {array.dtype}, expected uint8, uint16 or floats. Convert it to "
            "uint8."
        )
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        # A resized or decoded float image overshoots by rounding only; NaN fails both comparisons.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(
                f"found a float array with values from {low:g} to {high:g}, expected 0..1. Divide "
                "by 255, or convert to uint8."
            )
        return np.rint(np.clip(array, 0, 1).astype(np.float64) * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise ValueError(
        f"found a {array.dtype} array with values from {low} to {high}, expected uint8 in 0..255, "
        "uint16 in 0..65535 or floats in 0..1. Scale it to one of these."
    )


def _sixteen_to_eight_bits(samples: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255 with rounding; 257 = 65535 / 255."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
