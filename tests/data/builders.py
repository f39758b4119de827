"""Rows, files and pictures for the tests of training data."""

import gzip
import json
from pathlib import Path
from typing import Any

from PIL import Image

from hyperllava_hf.data import DataSource, Rows, StreamedRows, open_rows
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.processing.builders import build_image

NUM_PICTURES = 4


def save_pictures(folder: Path) -> Path:
    """Pictures 0.png, 1.png, ... of different sizes and content, and one in a subfolder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        build_image(20 + 7 * number, 31, seed=number).save(folder / f"{number}.png")
    (folder / "deep").mkdir(exist_ok=True)
    build_image(9, 9, seed=9).save(folder / "deep" / "0.jpg")
    return folder


def say(*turns: str) -> list[dict[str, str]]:
    """A LLaVA conversation: human and gpt in turn."""
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)
    ]


def build_row(number: int, num_images: int = 1, num_turns: int = 1, words: int = 3) -> dict:
    """A good LLaVA row; without images it has no `image` key."""
    turns = []
    for turn in range(num_turns):
        marks = "<image>\n" * num_images if turn == 0 else ""
        turns += [f"{marks}What is {number} and {turn}?", "It is" + f" {number}" * words]
    row: dict[str, Any] = {"id": f"row-{number}", "conversations": say(*turns)}
    pictures = [f"{(number + i) % NUM_PICTURES}.png" for i in range(num_images)]
    if pictures:
        row["image"] = pictures[0] if num_images == 1 else pictures
    return row


def build_mixed_rows(count: int) -> list[dict]:
    """Rows with no, one and two images, of different lengths and numbers of turns."""
    return [
        build_row(i, num_images=(1, 0, 2)[i % 3], num_turns=1 + i % 2, words=1 + i * 5 % 7)
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[Any], indent: int | None = None) -> str:
    """Write rows in the form that the name asks for."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = json.dumps(rows, indent=indent)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def open_small(
    path: str | list[str],
    processor: HyperLlavaProcessor,
    template: str = "vicuna_v1",
    max_length: int | None = 4096,
    on_bad_row: str = "stop",
    streaming: bool = False,
    **source: Any,
) -> Any:
    """Open files with the options that tests vary."""
    paths = [path] if isinstance(path, str) else path
    return open_rows(
        [DataSource(one, **source) for one in paths],
        processor=processor,
        template=template,
        max_length=max_length,
        on_bad_row=on_bad_row,
        streaming=streaming,
    )


def describe_row(row: Any) -> tuple:
    """What a row is, in a form that compares."""
    pixels = None if row.pixel_values is None else row.pixel_values.tobytes()
    return tuple(row.input_ids), tuple(row.labels), tuple(row.guidance_mask), pixels


def list_rows(rows: Rows | StreamedRows) -> list[tuple]:
    """Every row of either kind."""
    if isinstance(rows, Rows):
        return [describe_row(rows[i]) for i in range(len(rows))]
    return [describe_row(row) for row in rows]


def save_broken_png(path: Path) -> None:
    """A PNG whose second half is missing."""
    whole = path.with_suffix(".whole")
    build_image(64, 64).save(whole, format="PNG")
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    whole.unlink()


def build_red() -> Image.Image:
    """A red picture."""
    return Image.new("RGB", (12, 10), (200, 20, 20))
