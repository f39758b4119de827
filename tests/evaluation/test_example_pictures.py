"""The pictures in examples/ are what their descriptions say, and show test handwriting."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hyperllava_hf.evaluation.digit_questions import describe_scene
from hyperllava_hf.evaluation.digit_scenes import SPLITS, draw_scene

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_pictures_are_drawn_from_their_descriptions() -> None:
    examples = json.loads((EXAMPLES / "scenes.json").read_text())
    assert sorted(examples) == sorted(path.name for path in EXAMPLES.glob("*.png"))
    for name, example in examples.items():
        with Image.open(EXAMPLES / name) as picture:
            assert picture.size == (112, 112)
            assert np.array_equal(np.asarray(picture), np.asarray(draw_scene(example["scene"])))
        assert example["description"] == describe_scene(example["scene"])
        assert {entry["sample"] for entry in example["scene"]["digits"]} <= set(SPLITS["test"])
