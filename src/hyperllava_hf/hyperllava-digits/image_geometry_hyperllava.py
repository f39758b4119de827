"""LLaVA-1.5's image geometry: pad to a centred square, resize, crop.

The reference rule is: paste the image into the middle of a square of the background colour, then
resize that square with Pillow. For thin or very large images the square would be mostly background
and would not fit in memory (a 1 x 20,000 image has a square of 400 million pixels), so it is never
built above `MAX_SQUARE_PIXELS`.

Pillow resizes in two passes, rows first, then columns, and each pass treats every line on its own.
Background lines stay background, so only the part of each pass that sees the image has to be
computed:

    landscape   (w, h) -> rows (S, h) -> paste into (S, w) background -> columns (S, S)
    portrait    (w, h) -> window around the image -> rows (k, h) -> paste into (S, h) -> columns (S,
    S)
"""

import math

from PIL import Image

MAX_SQUARE_PIXELS = 2**25
# The widest of Pillow's filters (Lanczos) reaches 3 output pixels to each side.
_FILTER_REACH = 3
# Resizing the shortest edge of a thin image makes the longest edge huge; beyond this many times the
# output only the part that survives the crop is computed.
_MAX_LONG_EDGE_RATIO = 16


def pad_to_square_and_resize(
    image: Image.Image, side: int, background: tuple[int, int, int], resample: int
) -> Image.Image:
    """Paste an image into the middle of a square and resize the square.

    Args:
        image: RGB image of any size.
        side: Edge of the result in pixels.
        background: Colour of the added border, 0..255 each.
        resample: Pillow's filter number (3 is bicubic).

    Returns:
        RGB image of size (side, side).
    """
    width, height = image.size
    square = max(width, height)
    if width == height:
        return image.resize((side, side), resample=resample)
    if square * square <= MAX_SQUARE_PIXELS:
        canvas = Image.new("RGB", (square, square), background)
        canvas.paste(image, ((square - width) // 2, (square - height) // 2))
        return canvas.resize((side, side), resample=resample)
    if width > height:
        rows = image.resize((side, height), resample=resample)
        canvas = Image.new("RGB", (side, square), background)
        canvas.paste(rows, (0, (square - height) // 2))
    else:
        canvas = _resize_portrait_rows(image, side, background, resample)
    return canvas.resize((side, side), resample=resample)


def _resize_portrait_rows(
    image: Image.Image, side: int, background: tuple[int, int, int], resample: int
) -> Image.Image:
    """Do the row pass of a padded portrait image without its square: (w, h) to (side, h)."""
    width, height = image.size
    left = (height - width) // 2
    scale = height / side
    reach = _FILTER_REACH * max(scale, 1.0)
    # Output columns that can see the image, then input columns that those can see.
    first = max(0, math.floor((left - reach) / scale) - 1)
    last = min(side, math.ceil((left + width + reach) / scale) + 1)
    start = max(0, math.floor(first * scale - reach) - 1)
    stop = min(height, math.ceil(last * scale + reach) + 1)
    box_end = min(last * scale - start, stop - start)
    canvas = Image.new("RGB", (side, height), background)
    # Strips bound the memory: the window of a thin image is mostly background too.
    strip = max(1, MAX_SQUARE_PIXELS // (stop - start))
    for top in range(0, height, strip):
        bottom = min(height, top + strip)
        window = Image.new("RGB", (stop - start, bottom - top), background)
        window.paste(image.crop((0, top, width, bottom)), (left - start, 0))
        box = (first * scale - start, 0, box_end, bottom - top)
        canvas.paste(window.resize((last - first, bottom - top), resample, box), (first, top))
    return canvas


def resize_shortest_edge_and_crop(
    image: Image.Image, shortest_edge: int, crop_height: int, crop_width: int, resample: int
) -> Image.Image:
    """Resize the shortest edge, keeping proportions, and cut the centre, as CLIP does.

    Args:
        image: RGB image of any size.
        shortest_edge: Length of the shortest edge after resizing.
        crop_height: Rows of the result.
        crop_width: Columns of the result.
        resample: Pillow's filter number.

    Returns:
        RGB image of size (crop_width, crop_height); black where the resized image is smaller than
        the crop.
    """
    width, height = image.size
    if width <= height:
        new_width, new_height = shortest_edge, int(shortest_edge * height / width)
    else:
        new_width, new_height = int(shortest_edge * width / height), shortest_edge
    left = (
        (new_width - crop_width) // 2
        if new_width >= crop_width
        else -((crop_width - new_width + 1) // 2)
    )
    top = (
        (new_height - crop_height) // 2
        if new_height >= crop_height
        else -((crop_height - new_height + 1) // 2)
    )
    if max(new_width, new_height) > _MAX_LONG_EDGE_RATIO * max(
        crop_width, crop_height, shortest_edge
    ):
        image, left, top, (new_width, new_height) = _resize_visible_part(
            image, (new_width, new_height), (left, top), (crop_width, crop_height), resample
        )
    else:
        image = image.resize((new_width, new_height), resample=resample)
    return image.crop((left, top, left + crop_width, top + crop_height))


def _resize_visible_part(
    image: Image.Image,
    new_size: tuple[int, int],
    offset: tuple[int, int],
    crop: tuple[int, int],
    resample: int,
) -> tuple[Image.Image, int, int, tuple[int, int]]:
    """Resize only what a crop keeps of a thin image; returns it with the crop's offset in it."""
    box, size, rest = [], [], []
    for axis in (0, 1):
        scale = image.size[axis] / new_size[axis]
        first = max(0, offset[axis])
        last = min(new_size[axis], offset[axis] + crop[axis])
        box.append((first * scale, min(last * scale, image.size[axis])))
        size.append(last - first)
        rest.append(offset[axis] - first)
    (left, right), (top, bottom) = box
    part = image.resize((size[0], size[1]), resample=resample, box=(left, top, right, bottom))
    return part, rest[0], rest[1], part.size
