"""Draw the pictures of this folder: scenes of test digits, whose writers no training has seen.

    python examples/draw_scenes.py

Writes scene-1.png to scene-5.png, 112 x 112 pixels as the model sees them, and scenes.json with the
description of each. Needs scikit-learn: pip install ".[train]".
"""

import json
from pathlib import Path

from hyperllava_hf.evaluation.digit_questions import describe_scene
from hyperllava_hf.evaluation.digit_scenes import draw_scene, sample_scene

HERE = Path(__file__).parent
# Keyword arguments of `sample_scene`: every number of digits, and a scene that repeats itself. The
# seeds are the first that put a digit into the top left.
SCENES = (
    {"seed": 2, "num_digits": 1},
    {"seed": 2, "num_digits": 2},
    {"seed": 3, "num_digits": 3},
    {"seed": 4, "num_digits": 4},
    {"seed": 6, "digits": [7, 7, 1], "inks": ["red", "red", "blue"]},
)


def main() -> None:
    descriptions = {}
    for number, arguments in enumerate(SCENES, start=1):
        description = sample_scene(split="test", **arguments)
        name = f"scene-{number}.png"
        draw_scene(description).save(HERE / name, optimize=True)
        descriptions[name] = {"description": describe_scene(description), "scene": description}
    text = json.dumps(descriptions, indent=2) + "\n"
    (HERE / "scenes.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
