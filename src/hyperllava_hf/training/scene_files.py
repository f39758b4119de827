"""Digit scenes as LLaVA data on disk: a first data set to train on, drawn in seconds.

    python -m hyperllava_hf.training.scene_files scenes --rows 200

writes `scenes/captions.json` (stage 1), `scenes/conversations.json` (stage 2, some rows without an
image) and `scenes/images/*.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..evaluation.digit_scenes import draw_scene
from ..evaluation.digit_scenes import sample_scene as sample
from .scene_conversations import BROAD, Message, build_caption, build_messages, sample_turns

CAPTIONS, CONVERSATIONS, IMAGES = "captions.json", "conversations.json", "images"
# Stage 2 also has rows without images, as LLaVA's own mix does: one in this many.
TEXT_ROW_EVERY = 10
ROLES = {"user": "human", "assistant": "gpt"}


def to_llava(messages: list[Message]) -> list[dict[str, str]]:
    """Write messages as LLaVA's turns.

    Args:
        messages: Messages with typed parts.

    Returns:
        Turns with `<image>` where an image stands.
    """
    turns = []
    for message in messages:
        parts = [
            "<image>" if part["type"] == "image" else part["text"] for part in message["content"]
        ]
        turns.append({"from": ROLES[message["role"]], "value": "\n".join(parts)})
    return turns


def build_rows(number: int, num_turns: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Make the rows of one scene.

    Args:
        number: The scene's seed.
        num_turns: Questions a conversation.

    Returns:
        The picture, its row of stage 1 and its row of stage 2.
    """
    scene = sample(number, "train")
    name = f"{IMAGES}/{number:06d}.png"
    caption = {
        "id": f"scene-{number}",
        "image": name,
        "conversations": to_llava(build_caption(scene)),
    }
    turns = build_messages(sample_turns(number, scene, num_turns, BROAD), with_image=True)
    talk: dict[str, Any] = {
        "id": f"scene-{number}",
        "image": name,
        "conversations": to_llava(turns),
    }
    if number % TEXT_ROW_EVERY == TEXT_ROW_EVERY - 1:
        del talk["image"]
        talk["conversations"] = [
            {"from": "human", "value": "How many digits can a picture hold?"},
            {"from": "gpt", "value": "4"},
        ]
    return draw_scene(scene), caption, talk


def write_scene_files(
    folder: Path, num_rows: int, num_turns: int = 3, first: int = 0
) -> list[Path]:
    """Write digit scenes as LLaVA data.

    Args:
        folder: Where; made if it is not there.
        num_rows: Rows of each file.
        num_turns: Questions a conversation.
        first: Seed of the first scene.

    Returns:
        The files of stage 1 and stage 2.

    Raises:
        ValueError: If no rows are asked for, or the folder holds such files already.
    """
    if num_rows < 1 or num_turns < 1:
        raise ValueError(f"found {num_rows} rows of {num_turns} turns, expected at least 1 of each")
    paths = [folder / CAPTIONS, folder / CONVERSATIONS]
    if any(path.exists() for path in paths):
        raise ValueError(f"{folder} holds scenes already; name another folder")
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    rows: tuple[list[Any], list[Any]] = ([], [])
    for number in range(first, first + num_rows):
        picture, *both = build_rows(number, num_turns)
        picture.save(folder / both[0]["image"])
        for kept, row in zip(rows, both, strict=True):
            kept.append(row)
    for path, kept in zip(paths, rows, strict=True):
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return paths


def main() -> int:
    """Run as a command.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Draw digit scenes as LLaVA data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    try:
        paths = write_scene_files(arguments.folder, arguments.rows, arguments.turns)
    except (ValueError, OSError) as error:
        print(f"scene_files: {error}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
