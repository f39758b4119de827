"""Digit scenes: small images composed of real handwritten digits, described as plain JSON.

The handwriting is the 1,797 digits of 8 x 8 pixels that scikit-learn ships (`load_digits`, the
test half of UCI's "Optical Recognition of Handwritten Digits", CC BY 4.0). Everything else is
drawn by rule from a description, so that other code can draw fresh scenes and must find the same
accuracy:

    {"seed": int, "paper": [r, g, b],
     "digits": [{"sample": int, "digit": int, "place": str, "ink": [r, g, b],
                 "box": [left, top, right, bottom]}, ...]}

The canvas is 112 x 112 pixels in a 2 x 2 grid of cells of 56 x 56. `box` is in pixels, right and
bottom excluded. An ink is written as the colour that is on the paper; its name is that of the
nearest of six base inks (they lie much further apart than the jitter of 15 a channel). A name is
also accepted and draws the base ink.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

CANVAS_SIZE = 112
CELL_SIZE = 56
GLYPH_MAX_VALUE = 16
MIN_GLYPH_SIZE = 36
MAX_GLYPH_SIZE = 48
MAX_CENTRE_JITTER = 4
MAX_INK_JITTER = 15
MIN_PAPER = 200

PLACES = ("top left", "top right", "bottom left", "bottom right")
INKS = {
    "red": (200, 30, 30),
    "green": (20, 140, 40),
    "blue": (30, 60, 200),
    "orange": (230, 120, 0),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
}
# The file is ordered by writers' forms of about 130 digits: contiguous ranges keep writers apart.
SPLITS = {
    "train": range(0, 1287),
    "validation": range(1287, 1415),
    "test": range(1415, 1797),
    "train+validation": range(0, 1415),
}

Description = dict[str, Any]


@functools.cache
def load_glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Load the handwritten digits that scikit-learn ships.

    Returns:
        The glyphs, uint8 of shape (1797, 8, 8) with values 0 to 16, and their digits, int64 of
        shape (1797,), both read-only.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "scikit-learn is not installed, but digit scenes are composed of the handwritten "
            "digits that it ships; run: pip install 'hyperllava-hf[train]'"
        ) from error
    data = load_digits()
    glyphs = data.images.astype(np.uint8)
    digits = data.target.astype(np.int64)
    glyphs.flags.writeable = False
    digits.flags.writeable = False
    return glyphs, digits


def get_split(split: str) -> range:
    """Give the sample numbers of a split.

    Args:
        split: "train", "validation", "test" or "train+validation".

    Returns:
        The range of sample numbers.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"found split {split!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS[split]


@functools.cache
def get_samples_by_digit(split: str) -> dict[int, tuple[int, ...]]:
    """Group the samples of a split by their digit.

    Args:
        split: A name that `get_split` knows.

    Returns:
        For each digit 0 to 9, the numbers of its samples in ascending order.
    """
    _, digits = load_glyphs()
    samples = get_split(split)
    return {d: tuple(s for s in samples if digits[s] == d) for d in range(10)}


def get_ink_name(ink: str | Sequence[int]) -> str:
    """Name an ink: the nearest base ink in RGB.

    Args:
        ink: A base ink's name, or its colour, three channels of 0 to 255.

    Returns:
        The name, a key of `INKS`.

    Raises:
        ValueError: If `ink` is a string that names no base ink.
    """
    if isinstance(ink, str):
        if ink not in INKS:
            raise ValueError(f"found ink {ink!r}, expected [r, g, b] or one of {', '.join(INKS)}")
        return ink
    red, green, blue = ink

    def get_distance(name: str) -> int:
        base = INKS[name]
        return (base[0] - red) ** 2 + (base[1] - green) ** 2 + (base[2] - blue) ** 2

    return min(INKS, key=get_distance)


def get_ink_rgb(ink: str | Sequence[int]) -> tuple[int, int, int]:
    """Give the colour that an ink of a description draws.

    Args:
        ink: A base ink's name, or its colour, three channels of 0 to 255.

    Returns:
        Three channels of 0 to 255.

    Raises:
        ValueError: If `ink` is a string that names no base ink.
    """
    if isinstance(ink, str):
        return INKS[get_ink_name(ink)]
    red, green, blue = ink
    return int(red), int(green), int(blue)


def sample_scene(
    seed: int,
    split: str = "train",
    num_digits: int | None = None,
    digits: Sequence[int] | None = None,
    inks: Sequence[str] | None = None,
) -> Description:
    """Sample a scene's description; the same arguments always give the same scene.

    Args:
        seed: Any integer.
        split: The split whose handwriting is used, a name that `get_split` knows.
        num_digits: How many digits, 1 to 4; uniform when None.
        digits: The digits to write, in the order in which cells are drawn at random. When None,
            samples are uniform over the split. Decides `num_digits` when given.
        inks: The base inks' names, one for each digit; uniform when None.

    Returns:
        The description, with its digits in reading order.

    Raises:
        ValueError: If the number of digits is not 1 to 4, or differs from that of `inks`.
    """
    rng = random.Random(seed)
    if digits is not None:
        num_digits = len(digits)
    if num_digits is None:
        num_digits = rng.randint(1, len(PLACES))
    if not 1 <= num_digits <= len(PLACES):
        raise ValueError(f"found {num_digits} digits, expected 1 to {len(PLACES)} (one a cell)")
    if inks is not None and len(inks) != num_digits:
        raise ValueError(f"found {len(inks)} inks, expected one for each of {num_digits} digits")

    _, all_digits = load_glyphs()
    samples = get_split(split)
    entries = []
    for i, cell in enumerate(rng.sample(range(len(PLACES)), num_digits)):
        if digits is None:
            sample = rng.choice(samples)
        else:
            sample = rng.choice(get_samples_by_digit(split)[digits[i]])
        name = rng.choice(list(INKS)) if inks is None else get_ink_name(inks[i])
        entries.append((cell, _sample_entry(rng, sample, int(all_digits[sample]), cell, name)))
    entries.sort(key=lambda entry: entry[0])
    paper = [rng.randint(MIN_PAPER, 255) for _ in range(3)]
    return {"seed": seed, "paper": paper, "digits": [entry for _, entry in entries]}


def _sample_entry(
    rng: random.Random, sample: int, digit: int, cell: int, ink: str
) -> dict[str, Any]:
    size = rng.randint(MIN_GLYPH_SIZE, MAX_GLYPH_SIZE)
    margin = (CELL_SIZE - size) // 2
    left, top = (
        corner * CELL_SIZE + margin + rng.randint(-MAX_CENTRE_JITTER, MAX_CENTRE_JITTER)
        for corner in (cell % 2, cell // 2)
    )
    colour = [
        min(255, max(0, channel + rng.randint(-MAX_INK_JITTER, MAX_INK_JITTER)))
        for channel in INKS[ink]
    ]
    return {
        "sample": sample,
        "digit": digit,
        "place": PLACES[cell],
        "ink": colour,
        "box": [left, top, left + size, top + size],
    }


def draw_scene(description: Description) -> Image.Image:
    """Draw a scene.

    A glyph's values are upsampled bicubically to its box, then ink covers paper with
    alpha = value / 16.

    Args:
        description: A description as `sample_scene` gives it.

    Returns:
        An RGB image of 112 x 112 pixels.

    Raises:
        ValueError: If a box is not a square inside the canvas.
    """
    glyphs, _ = load_glyphs()
    canvas = np.empty((CANVAS_SIZE, CANVAS_SIZE, 3), dtype=np.float32)
    canvas[:] = np.asarray(description["paper"], dtype=np.float32)
    for entry in description["digits"]:
        left, top, right, bottom = entry["box"]
        size = right - left
        inside = 0 <= left and 0 <= top and right <= CANVAS_SIZE and bottom <= CANVAS_SIZE
        if size < 1 or bottom - top != size or not inside:
            raise ValueError(
                f"found box {entry['box']}, expected a square [left, top, right, bottom] inside "
                f"the canvas of {CANVAS_SIZE} x {CANVAS_SIZE} pixels"
            )
        glyph = Image.fromarray(glyphs[entry["sample"]].astype(np.float32))
        values = np.asarray(glyph.resize((size, size), Image.Resampling.BICUBIC))
        alpha = np.clip(values / GLYPH_MAX_VALUE, 0.0, 1.0)[:, :, None]  # (size, size, 1)
        ink = np.asarray(get_ink_rgb(entry["ink"]), dtype=np.float32)
        window = canvas[top:bottom, left:right]
        window[:] = window * (1.0 - alpha) + ink * alpha
    return Image.fromarray(np.rint(canvas).astype(np.uint8))
