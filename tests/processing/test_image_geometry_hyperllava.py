"""Padding, resizing and cropping, against derivations of their own."""

import numpy as np
import pytest
from PIL import Image

from hyperllava_hf.processing import image_geometry_hyperllava as geometry
from tests.processing.builders import build_image

GREY = (122, 116, 104)
SIZES = [(30, 20), (20, 30), (7, 7), (1, 50), (50, 1), (1, 1), (101, 3), (97, 89), (64, 63)]


def pad_and_resize_plainly(image: Image.Image, side: int) -> Image.Image:
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    square = max(height, width)
    canvas = np.empty((square, square, 3), np.uint8)
    canvas[:] = GREY
    top, left = (square - height) // 2, (square - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return Image.fromarray(canvas).resize((side, side), Image.Resampling.BICUBIC)


def bicubic_weights(size_in: int, size_out: int) -> np.ndarray:
    """Keys' kernel with a = -0.5, stretched when shrinking, as rows of weights."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs((np.arange(size_in)[None] + 0.5 - centres[:, None]) / stretch)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("side", [28, 13])
@pytest.mark.parametrize("size", SIZES)
def test_padded_resize_is_the_original_rule(size, side):
    image = build_image(*size)
    found = geometry.pad_to_square_and_resize(image, side, GREY, 3)
    assert np.array_equal(np.asarray(found), np.asarray(pad_and_resize_plainly(image, side)))


@pytest.mark.parametrize("side", [28, 13])
@pytest.mark.parametrize("size", [*SIZES, (1, 700), (700, 1), (5, 611), (300, 299)])
def test_large_images_get_the_same_pixels_without_their_square(monkeypatch, size, side):
    image = build_image(*size)
    monkeypatch.setattr(geometry, "MAX_SQUARE_PIXELS", 0)
    found = geometry.pad_to_square_and_resize(image, side, GREY, 3)
    assert np.array_equal(np.asarray(found), np.asarray(pad_and_resize_plainly(image, side)))


def test_resize_is_bicubic_by_its_formula():
    image = build_image(37, 37)
    rows, columns = bicubic_weights(37, 14), bicubic_weights(37, 14)
    pixels = np.asarray(image, np.float64)
    expected = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels).clip(0, 255)
    found = np.asarray(geometry.pad_to_square_and_resize(image, 14, GREY, 3), np.float64)
    # Pillow rounds to whole numbers after each of its two passes.
    assert np.abs(found - expected).max() < 1.6


def test_thin_large_images_need_little_memory():
    for size in [(40_000, 1), (1, 40_000)]:
        found = geometry.pad_to_square_and_resize(Image.new("RGB", size), 336, GREY, 3)
        assert found.size == (336, 336)
        cropped = geometry.resize_shortest_edge_and_crop(Image.new("RGB", size), 28, 28, 28, 3)
        assert cropped.size == (28, 28)


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (28, 28), (57, 31)])
def test_shortest_edge_and_crop_is_clips_rule(size):
    image = build_image(*size)
    width, height = size
    factor = 24 / min(size)
    new = (24, int(height * factor)) if width <= height else (int(width * factor), 24)
    pixels = np.asarray(image.resize(new, Image.Resampling.BICUBIC))
    top, left = (new[1] - 14) // 2, (new[0] - 14) // 2
    found = geometry.resize_shortest_edge_and_crop(image, 24, 14, 14, 3)
    assert np.array_equal(np.asarray(found), pixels[top : top + 14, left : left + 14])


def test_crop_larger_than_the_image_is_filled_with_black():
    found = np.asarray(
        geometry.resize_shortest_edge_and_crop(Image.new("RGB", (9, 9), "white"), 3, 6, 6, 3)
    )
    assert found.sum(-1).astype(bool).tolist() == [
        [2 <= row < 5 and 2 <= column < 5 for column in range(6)] for row in range(6)
    ]


@pytest.mark.parametrize("size", [(1000, 3), (3, 1000), (997, 5)])
def test_visible_part_of_a_thin_image_is_that_of_the_whole(monkeypatch, size):
    image = build_image(*size)
    expected = geometry.resize_shortest_edge_and_crop(image, 28, 28, 28, 3)
    monkeypatch.setattr(geometry, "_MAX_LONG_EDGE_RATIO", 0)
    found = geometry.resize_shortest_edge_and_crop(image, 28, 28, 28, 3)
    difference = np.asarray(found, int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1
