"""The image processor: LLaVA-1.5's pixels, its settings, and where they may come from."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hyperllava_hf.processing import HyperLlavaImageProcessor, image_processing_hyperllava
from hyperllava_hf.processing.image_arrays_hyperllava import flatten_images
from tests.processing.builders import build_image, escape

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def preprocess_independently(image: Image.Image, side: int) -> np.ndarray:
    """LLaVA's `expand2square` and CLIP's arithmetic, without a table and on whole arrays."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    over = max(height, width)
    canvas = np.stack([np.full((over, over), int(255 * mean), np.uint8) for mean in MEAN], -1)
    canvas[(over - height) // 2 :, (over - width) // 2 :][:height, :width] = pixels
    resized = Image.fromarray(canvas).resize((side, side), Image.Resampling.BICUBIC)
    scaled = (np.asarray(resized, np.float64) * (1 / 255)).astype(np.float32)
    normalised = (scaled - np.float32(MEAN)) / np.float32(STD)
    return normalised.transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(30, 20), (20, 31), (28, 28), (1, 40), (500, 333)])
@pytest.mark.parametrize("side", [28, 336])
def test_pixels_are_those_of_the_original_rule_to_the_bit(size, side):
    image = build_image(*size)
    found = HyperLlavaImageProcessor(size=side)(image, return_tensors="np")["pixel_values"]
    assert found.dtype == np.float32
    assert np.array_equal(found[0], preprocess_independently(image, side))


@pytest.mark.parametrize("size", [(30, 20), (20, 31), (45, 45)])
def test_without_padding_pixels_are_those_of_transformers_clip(size):
    name = "CLIPImageProcessorPil"
    clip = getattr(transformers, name, None) or transformers.CLIPImageProcessor
    settings = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    image = build_image(*size)
    expected = clip(**settings)(image, return_tensors="np")["pixel_values"]
    found = HyperLlavaImageProcessor(size=28, do_pad=False)(image, return_tensors="np")
    assert np.array_equal(found["pixel_values"], expected)


def test_padding_colour_is_the_mean_to_within_a_step():
    found = HyperLlavaImageProcessor(size=28)(build_image(1, 300), return_tensors="np")
    assert np.abs(found["pixel_values"][0, :, :, 0]).max() < 1 / 255 / min(STD)


@pytest.mark.parametrize(
    ("kind", "type_"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)]
)
def test_return_types(kind, type_):
    images = [build_image(), [build_image(5, 9), np.zeros((2, 4, 4, 3), np.uint8)]]
    found = HyperLlavaImageProcessor(size=14).preprocess(images, return_tensors=kind)
    assert isinstance(found["pixel_values"], type_)
    assert len(found["pixel_values"]) == 4
    assert tuple(found["pixel_values"][0].shape) == (3, 14, 14)


def test_flattening_keeps_the_order():
    assert flatten_images([1, [2, (3, [4])], []]) == [1, 2, 3, 4]
    assert flatten_images(None) == []


def test_defaults_are_llava_15s():
    assert HyperLlavaImageProcessor().to_dict() == {
        "auto_map": {
            "AutoImageProcessor": "image_processing_hyperllava.HyperLlavaImageProcessor",
            "AutoProcessor": "processing_hyperllava.HyperLlavaProcessor",
        },
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "HyperLlavaImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 336},
    }


SIZES = [
    (112, {"shortest_edge": 112}, (112, 112)),
    ((20, 30), {"height": 20, "width": 30}, (20, 30)),
    ({"height": 20, "width": 30}, {"height": 20, "width": 30}, (20, 30)),
    ({"shortest_edge": 24}, {"shortest_edge": 24}, (24, 24)),
]


@pytest.mark.parametrize(("given", "kept", "output"), SIZES)
def test_sizes_are_understood_as_people_write_them(given, kept, output):
    processor = HyperLlavaImageProcessor(size=given, do_pad=False)
    assert processor.size == kept
    assert processor.output_size() == output
    found = processor(build_image(), return_tensors="np")["pixel_values"]
    assert found.shape == (1, 3, *output)


def test_a_call_may_replace_settings():
    processor = HyperLlavaImageProcessor(size=28)
    found = processor(build_image(), size=14, return_tensors="np", do_normalize=False)
    assert found["pixel_values"].shape == (1, 3, 14, 14)
    assert found["pixel_values"].min() >= 0
    assert processor.size == {"shortest_edge": 28}
    raw = processor(build_image(28, 28), do_rescale=False, do_normalize=False, return_tensors="np")
    assert np.array_equal(
        raw["pixel_values"][0], np.asarray(build_image(28, 28)).transpose(2, 0, 1)
    )


def test_without_resizing_images_must_fit():
    processor = HyperLlavaImageProcessor(size=20, do_resize=False)
    assert processor(build_image(20, 20), return_tensors="np")["pixel_values"].shape[-1] == 20
    with pytest.raises(ValueError, match=escape("image 1 is 30 x 20", "expects 20 x 20", "Resize")):
        processor([build_image(20, 20), build_image(30, 20)])


CONTRADICTIONS = [
    ({"size": 0}, "size is .*0"),
    ({"size": {"longest_edge": 3}}, "longest_edge"),
    ({"size": "112"}, "size is '112'"),
    ({"size": {"height": "tall", "width": 3}}, "tall"),
    ({"image_mean": 0.5}, "image_mean is 0.5"),
    ({"image_std": [float("nan")] * 3}, "image_std .*nan.*finite"),
    ({"rescale_factor": "a"}, "rescale_factor is 'a'"),
    ({"size": (20, 30)}, "do_pad makes squares"),
    ({"size": 28, "do_pad": False, "do_center_crop": False}, "would keep their own shapes"),
    ({"size": 28, "crop_size": 14, "do_center_crop": False}, "but crop_size is"),
    ({"image_mean": [0.5]}, "3 finite numbers each"),
    ({"image_std": [0, 1, 1]}, "image_std must be positive"),
]


@pytest.mark.parametrize(("settings", "part"), CONTRADICTIONS)
def test_contradicting_settings_raise_when_built_and_when_called(settings, part):
    with pytest.raises(ValueError, match=part):
        HyperLlavaImageProcessor(**settings)
    with pytest.raises(ValueError, match=part):
        HyperLlavaImageProcessor(size=28)(build_image(), **settings)


def test_all_contradictions_are_named_at_once():
    with pytest.raises(
        ValueError, match=escape("3 finite numbers each", "would keep their own shapes")
    ):
        HyperLlavaImageProcessor(image_mean=[1], do_pad=False, do_center_crop=False)


@pytest.mark.parametrize("resample", ["bicubic", 77, None])
def test_an_unknown_filter_is_named_with_the_known_ones(resample):
    with pytest.raises(ValueError, match=r"resample is .*expected one of .*3 \(bicubic\)"):
        HyperLlavaImageProcessor(resample=resample)


def test_a_misspelt_setting_is_named():
    with pytest.raises(TypeError, match=escape("do_padd", "Known settings", "do_pad")):
        HyperLlavaImageProcessor(do_padd=True)


def test_unreadable_images_are_named_by_their_place():
    with pytest.raises(ValueError, match=r"image 2: there is no file 'missing\.png'"):
        HyperLlavaImageProcessor(size=14)([build_image(), [build_image(), "missing.png"]])


def test_save_and_load_keep_every_setting(tmp_path):
    processor = HyperLlavaImageProcessor(size=28, do_pad=False, image_mean=[0.5, 0.25, 0.125])
    processor.save_pretrained(tmp_path)
    loaded = HyperLlavaImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (tmp_path / "image_geometry_hyperllava.py").exists()
    changed, unused = HyperLlavaImageProcessor.from_pretrained(
        tmp_path, size=42, do_pad=True, unknown=1, return_unused_kwargs=True
    )
    assert changed.output_size() == (42, 42)
    assert changed.do_pad
    assert unused["unknown"] == 1


LLAVA_HF = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}


def test_a_clip_configuration_gets_llavas_padding_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(image_processing_hyperllava.logger, "warning_once", said.append)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(LLAVA_HF))
    processor = HyperLlavaImageProcessor.from_pretrained(tmp_path)
    assert {
        **processor.to_dict(),
        "rescale_factor": 1 / 255,
    } == HyperLlavaImageProcessor().to_dict()
    assert len(said) == 1
    assert re.search(escape("CLIPImageProcessor", "padded to a square", "do_pad=False"), said[0])
    assert not HyperLlavaImageProcessor.from_pretrained(tmp_path, do_pad=False).do_pad
    assert len(said) == 1
