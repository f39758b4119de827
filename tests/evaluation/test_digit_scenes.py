"""Scenes: literal values, the rules of the definition, and an independent drawer."""

import json

import numpy as np
import pytest
from PIL import Image

from hyperllava_hf.evaluation.digit_scenes import (
    INKS,
    PLACES,
    SPLITS,
    draw_scene,
    get_ink_name,
    get_split,
    load_glyphs,
    sample_scene,
)

SEEDS = range(300)


def test_glyphs_are_the_uci_test_digits() -> None:
    glyphs, digits = load_glyphs()
    assert glyphs.shape == (1797, 8, 8)
    assert glyphs.max() == 16
    assert digits[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert glyphs[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_splits_are_the_forms_of_the_definition() -> None:
    assert SPLITS["train"] == range(1287)
    assert SPLITS["validation"] == range(1287, 1415)
    assert SPLITS["test"] == range(1415, 1797)


def test_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="found split 'dev', expected one of train, validation"):
        get_split("dev")


def test_a_seed_always_gives_the_same_scene() -> None:
    assert sample_scene(7, "validation") == {
        "seed": 7,
        "paper": [203, 236, 237],
        "digits": [
            {
                "sample": 1395,
                "digit": 7,
                "place": "top left",
                "ink": [205, 35, 33],
                "box": [2, 4, 47, 49],
            },
            {
                "sample": 1305,
                "digit": 8,
                "place": "top right",
                "ink": [144, 41, 151],
                "box": [66, 5, 103, 42],
            },
            {
                "sample": 1296,
                "digit": 9,
                "place": "bottom right",
                "ink": [192, 17, 32],
                "box": [65, 60, 107, 102],
            },
        ],
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_sampled_scenes_keep_to_the_definition(split: str) -> None:
    _, digits = load_glyphs()
    for seed in SEEDS:
        scene = sample_scene(seed, split)
        assert json.loads(json.dumps(scene)) == scene
        assert list(scene) == ["seed", "paper", "digits"]
        assert all(200 <= channel <= 255 for channel in scene["paper"])
        places = [entry["place"] for entry in scene["digits"]]
        assert 1 <= len(places) <= 4
        assert places == [place for place in PLACES if place in places]
        for entry in scene["digits"]:
            assert list(entry) == ["sample", "digit", "place", "ink", "box"]
            assert entry["sample"] in SPLITS[split]
            assert entry["digit"] == digits[entry["sample"]]
            left, top, right, bottom = entry["box"]
            assert 36 <= right - left <= 48
            assert right - left == bottom - top
            column, row = PLACES.index(entry["place"]) % 2, PLACES.index(entry["place"]) // 2
            # The centre is within 4 pixels of the cell's, half a pixel more for odd sizes.
            assert abs((left + right) / 2 - (56 * column + 28)) <= 4.5
            assert abs((top + bottom) / 2 - (56 * row + 28)) <= 4.5
            base = INKS[get_ink_name(entry["ink"])]
            assert max(abs(a - b) for a, b in zip(entry["ink"], base, strict=True)) <= 15
            assert all(0 <= channel <= 255 for channel in entry["ink"])


def test_constraints_are_kept() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed, digits=[3, 3, 8], inks=["red", "red", "blue"])
        found = sorted((e["digit"], get_ink_name(e["ink"])) for e in scene["digits"])
        assert found == [(3, "red"), (3, "red"), (8, "blue")]
        assert len(sample_scene(seed, num_digits=2)["digits"]) == 2


def test_five_digits_have_no_place() -> None:
    with pytest.raises(ValueError, match="found 5 digits, expected 1 to 4"):
        sample_scene(0, num_digits=5)
    with pytest.raises(ValueError, match="found 1 inks, expected one for each of 2 digits"):
        sample_scene(0, num_digits=2, inks=["red"])


def test_every_jittered_ink_has_the_name_of_its_base() -> None:
    corners = np.array(np.meshgrid(*[[-15, 0, 15]] * 3)).reshape(3, -1).T
    for name, base in INKS.items():
        assert {get_ink_name((np.array(base) + corner).tolist()) for corner in corners} == {name}


def test_ink_may_be_a_name() -> None:
    scene = sample_scene(3)
    named = [{**entry, "ink": get_ink_name(entry["ink"])} for entry in scene["digits"]]
    colours = [{**entry, "ink": list(INKS[entry["ink"]])} for entry in named]
    by_name = draw_scene({**scene, "digits": named})
    assert np.array_equal(by_name, draw_scene({**scene, "digits": colours}))
    with pytest.raises(ValueError, match=r"found ink 'pink', expected \[r, g, b\] or one of red"):
        get_ink_name("pink")


def draw_pixel_by_pixel(scene: dict) -> np.ndarray:
    """Draw by compositing images with Pillow, from the definition alone."""
    glyphs, _ = load_glyphs()
    canvas = Image.new("RGB", (112, 112), tuple(scene["paper"]))
    for entry in scene["digits"]:
        left, top, right, bottom = entry["box"]
        coverage = Image.fromarray(glyphs[entry["sample"]].astype(np.float32) * 255 / 16)
        coverage = coverage.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        mask = Image.fromarray(np.asarray(coverage).clip(0, 255).round().astype(np.uint8))
        canvas.paste(Image.new("RGB", mask.size, tuple(entry["ink"])), (left, top), mask)
    return np.asarray(canvas)


def test_drawing_agrees_with_an_independent_drawer() -> None:
    for seed in range(40):
        scene = sample_scene(seed)
        drawn = np.asarray(draw_scene(scene)).astype(int)
        assert drawn.shape == (112, 112, 3)
        assert np.abs(drawn - draw_pixel_by_pixel(scene)).max() <= 1


def test_paper_is_plain_outside_the_boxes() -> None:
    scene = sample_scene(11, num_digits=2)
    drawn = np.array(draw_scene(scene))
    for entry in scene["digits"]:
        left, top, right, bottom = entry["box"]
        drawn[top:bottom, left:right] = scene["paper"]
    assert (drawn == np.array(scene["paper"])).all()


@pytest.mark.parametrize("box", [[80, 0, 120, 40], [0, 0, 40, 30], [-1, 0, 39, 40], [5, 5, 5, 5]])
def test_box_outside_the_canvas_is_refused(box: list[int]) -> None:
    scene = sample_scene(0, num_digits=1)
    scene["digits"][0]["box"] = box
    with pytest.raises(ValueError, match="expected a square"):
        draw_scene(scene)
