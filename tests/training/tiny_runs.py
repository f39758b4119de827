"""Tiny runs: LLaVA rows of all kinds on disk, and settings that train a two-block model on them."""

import json
from pathlib import Path

from PIL import Image

from hyperllava_hf.training.settings import TrainingSettings

# Image counts of the rows; answers are of different lengths.
IMAGE_COUNTS = (1, 0, 1, 2, 1, 0, 1, 1, 0, 1, 1)


def write_rows(folder: Path, image_counts: tuple[int, ...] = IMAGE_COUNTS) -> Path:
    """Write LLaVA rows and their pictures; returns the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, count in enumerate(image_counts):
        names = [f"{number}-{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            colour = (40 * number % 256, 90 * i % 256, 17 * number % 256)
            Image.new("RGB", (20 + number, 31), colour).save(folder / name)
        question = "<image>\n" * count + f"q{number}?"
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "abc"[: 1 + number % 3] * (1 + number % 5)},
            {"from": "human", "value": "and?"},
            {"from": "gpt", "value": "z"},
        ]
        row = {"id": f"row-{number}", "conversations": turns}
        if names:
            row["image"] = names if count > 1 else names[0]
        rows.append(row)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def build_tiny_settings(model: Path, rows: Path, **changes: object) -> TrainingSettings:
    """Settings of a run of six steps over two epochs in float32 on the CPU."""
    values = {
        "stage": "instruct",
        "model": str(model),
        "data": (str(rows),),
        "dtype": "float32",
        "gradient_checkpointing": False,
        "group_by_modality_length": True,
        "num_workers": 0,
        "num_epochs": 2.0,
        "global_batch_size": 4,
        "device_batch_size": 2,
        "learning_rate": 1e-2,
        "hypernetwork_learning_rate": 3e-3,
        "projector_learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "save_steps": 2,
        "seed": 3,
        **changes,
    }
    settings = TrainingSettings(**values)
    settings.raise_if_invalid()
    return settings
