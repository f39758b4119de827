"""Everything that people hand in as an image, and everything that only looks like one."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hyperllava_hf.processing import image_loading_hyperllava as loading
from hyperllava_hf.processing.image_loading_hyperllava import load_rgb_image
from tests.processing.builders import build_image, escape

IMAGE = build_image(9, 5)
PIXELS = np.asarray(IMAGE)


def encode(image: Image.Image = IMAGE, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


PNG = encode()
BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "scene.png"
    file.write_bytes(PNG)
    return file


FORMS = {
    "pil": IMAGE,
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "open file": io.BytesIO(PNG),
    "data url": f"data:image/png;base64,{BASE64}",
    "base64": BASE64,
    "base64 in lines": base64.encodebytes(PNG).decode(),
    "record with bytes": {"bytes": PNG, "path": None},
    "chat part": {"type": "image", "image": IMAGE},
    "uint8 hwc": PIXELS,
    "uint8 chw": PIXELS.transpose(2, 0, 1),
    "int64": PIXELS.astype(np.int64),
    "float64": PIXELS / 255,
    "float32": (PIXELS / 255).astype(np.float32),
    "float16": (PIXELS / 255).astype(np.float16),
    "uint16": PIXELS.astype(np.uint16) * 257,
    "not contiguous": np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],
    "torch uint8": torch.from_numpy(PIXELS.copy()),
    "torch float chw": torch.from_numpy(PIXELS.copy()).permute(2, 0, 1) / 255,
    "torch with gradient": (torch.from_numpy(PIXELS.copy()) / 255).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form):
    source = FORMS[form]
    if hasattr(source, "seek"):
        source.seek(0)
    found = load_rgb_image(source)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), PIXELS)


def test_paths_give_the_same_pixels(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    for source in (path, str(path), f"file://{path}", "~/scene.png", {"path": str(path)}):
        assert np.array_equal(np.asarray(load_rgb_image(source)), PIXELS)


def test_bfloat16_tensors_are_read():
    found = load_rgb_image(torch.full((4, 6, 3), 0.5, dtype=torch.bfloat16))
    assert found.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 1), (1, 5, 9)])
def test_grayscale_arrays_repeat_their_channel(shape):
    found = np.asarray(load_rgb_image(PIXELS[..., 0].reshape(shape)))
    assert np.array_equal(found, np.repeat(PIXELS[..., :1], 3, -1))


def test_boolean_arrays_are_black_and_white():
    found = load_rgb_image(np.array([[True, False]]))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_ambiguous_layout_follows_the_argument():
    array = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(load_rgb_image(array)), array)
    first = load_rgb_image(array, "channels_first")
    assert np.array_equal(np.asarray(first), array.transpose(1, 2, 0))


def test_alpha_is_dropped_as_llava_drops_it():
    for mode in ("RGBA", "LA", "PA"):
        image = IMAGE.convert("RGBA")
        image.putalpha(3)
        image = image.convert(mode) if mode != "PA" else IMAGE.convert("P").convert("PA")
        expected = image.convert("RGBA").convert("RGB") if mode == "PA" else image.convert("RGB")
        assert np.array_equal(np.asarray(load_rgb_image(image)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa"])
def test_modes_are_converted_as_llava_converts_them(mode):
    image = IMAGE.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(load_rgb_image(image)), expected)


def test_cmyk_jpeg_from_a_file():
    data = encode(IMAGE.convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(load_rgb_image(data)), expected)


def test_transparent_palette_loads_without_a_warning(recwarn):
    palette = IMAGE.convert("P")
    data = encode(palette, transparency=bytes([0, 128, 255]))
    assert np.array_equal(np.asarray(load_rgb_image(data)), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format):
    samples = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = load_rgb_image(encode(Image.fromarray(samples), format))
    assert [found.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_deep_images_are_scaled(mode):
    samples = np.array([[0, 1]])
    samples = samples.astype(np.float32) if mode == "F" else (samples * 65535).astype(np.int32)
    found = load_rgb_image(Image.fromarray(samples))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_wide_integers_are_read_by_their_range_as_arrays_are():
    samples = np.array([[0, 7, 128, 255]], np.int32)
    image = Image.fromarray(samples)
    assert image.mode == "I"
    for source in (image, encode(image, "TIFF"), samples):
        found = load_rgb_image(source)
        assert [found.getpixel((x, 0))[0] for x in range(4)] == [0, 7, 128, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    found = load_rgb_image(encode(IMAGE, "PNG", exif=exif))
    assert np.array_equal(np.asarray(found), np.rot90(PIXELS, -1))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_rgb_image(data).getpixel((0, 0)) == (255, 0, 0)


REFUSED = {
    "eps": (encode(format="EPS"), ("is an EPS document", "Convert it to PNG")),
    "no image": (b"hello world" * 20, ("220 bytes", "no image that Pillow can read", "Convert")),
    "empty": (b"", ("0 bytes", "no image")),
    "truncated png": (PNG[:-60], ("damaged or cut short", "complete file", "again")),
    "truncated jpeg": (
        encode(build_image(200, 200), "JPEG")[:3000],
        ("damaged or cut short", "complete file"),
    ),
    "missing": ("no/such/scene.png", ("no file 'no/such/scene.png'", "Check the path")),
    "odd word": ("cat", ("no file 'cat'",)),
    "long path": ("x/" * 3000 + "a.png", ("no file 'x/x/",)),
    "zero byte": ("a\0b", ("there is no file",)),
    "number": (7, ("found a int", "expected a path", "Pass one of these")),
    "none": (None, ("found a NoneType", "expected a path")),
    "empty record": ({"width": 3}, ("a dict with keys ['width']", "'bytes'")),
    "data url without base64": ("data:image/png,abc", ("data: URL", "base64")),
    "data url of text": ("data:text/plain;base64,aGVsbG8=", ("no image that Pillow can read",)),
    "data url damaged": ("data:image/png;base64,a", ("not valid base64", "Encode the file again")),
    "shape": (np.zeros((2, 3, 4, 5), np.uint8), ("shape (2, 3, 4, 5)", "(height, width")),
    "no pixels": (np.zeros((0, 3, 3), np.uint8), ("shape (0, 3, 3)", "at least one pixel")),
    "five channels": (np.zeros((5, 6, 7), np.uint8), ("shape (5, 6, 7)", "1 to 4 channels")),
    "floats to 255": (np.full((2, 2, 3), 200.0), ("200", "0..1", "Divide by 255")),
    "nan": (np.full((2, 2, 3), np.nan), ("nan", "0..1")),
    "negative": (np.full((2, 2, 3), -1), ("from -1 to -1", "uint8")),
    "text array": (np.array([["a"]]), ("an array of <U1", "expected uint8")),
    "deep overflow": (
        Image.fromarray(np.array([[-5, 70000]], np.int32)),
        ("from -5 to 70000", "0..65535"),
    ),
    "too long": (Image.new("1", (70_000, 1)), ("70000 x 1", "65535 pixels per side", "Resize")),
    "too long array": (np.zeros((1, 70_000), np.uint8), ("70000 x 1", "65535")),
    "too long file": (encode(Image.new("1", (70_000, 1))), ("70000 x 1", "65535")),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_image_is_refused_with_one_clear_error(case):
    source, parts = REFUSED[case]
    with pytest.raises(ValueError, match=escape(*parts)):
        load_rgb_image(source)


def test_a_directory_is_named_as_one(tmp_path):
    with pytest.raises(ValueError, match=escape("is a directory", "Name a file")):
        load_rgb_image(tmp_path)


def test_an_unreadable_file_is_named(path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(loading, "open", refuse, raising=False)
    with pytest.raises(ValueError, match=escape("(Permission denied)", "Check its permissions")):
        load_rgb_image(path)


def test_a_truncated_pil_image_is_named(path):
    path.write_bytes(encode(build_image(300, 300))[:4000])
    with pytest.raises(ValueError, match=escape("damaged or cut short", "complete file")):
        load_rgb_image(Image.open(path))


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=escape("too large to be safe", "MAX_IMAGE_PIXELS")):
        load_rgb_image(PNG)


def test_a_broken_palette_is_no_crash():
    damaged = bytearray(encode(IMAGE.convert("P")))
    place = damaged.index(b"PLTE")
    damaged[place + 10] ^= 255
    with pytest.raises(ValueError, match=r"damaged|no image"):
        load_rgb_image(bytes(damaged))


def test_a_decoder_that_fails_in_its_own_way_is_one_clear_error(monkeypatch):
    def fail(image):
        raise RuntimeError("Failed to decode image: Not implemented")

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=escape("damaged or cut short", "Not implemented")):
        load_rgb_image(PNG)


def test_an_unreachable_address_is_one_clear_error():
    # Port 9 of the own machine: refused at once, without a network.
    with pytest.raises(
        ValueError, match=escape("127.0.0.1:9/a.png", "could not be fetched", "network")
    ):
        load_rgb_image("http://127.0.0.1:9/a.png")


def test_addresses_are_fetched_by_transformers(monkeypatch):
    monkeypatch.setattr(loading, "load_image", lambda url, timeout: IMAGE)
    assert np.array_equal(np.asarray(load_rgb_image("https://example.org/a.png")), PIXELS)
