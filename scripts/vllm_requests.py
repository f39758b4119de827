"""The requests that vLLM and `generate` both answer: texts, images, conversations, all lengths."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTIONS = (
    "Describe the image.",
    "How many digits are there?",
    "Is there a 7 in the image?",
    "What digit is in the top left?",
)
# Many times longer than a step of the server that reads prompts in small pieces.
LONG_TEXT = "The image has a red 7 in the top left and a blue 3 in the bottom right. " * 8


@dataclass(frozen=True)
class Request:
    """One conversation and how its answer ends.

    Attributes:
        kind: Which row of the results it counts for.
        turns: Role, numbers of the pictures in `examples/`, and text of each message.
        max_tokens: Longest answer.
        ignore_eos: Whether the answer goes on to `max_tokens` whatever it says.
    """

    kind: str
    turns: tuple[tuple[str, tuple[int, ...], str], ...]
    max_tokens: int
    ignore_eos: bool

    def list_messages(self, as_url: bool) -> list[dict[str, Any]]:
        """List the messages, with images as PIL or as data URLs of an OpenAI-style request."""
        messages = []
        for role, pictures, text in self.turns:
            images = [build_url(n) if as_url else open_picture(n) for n in pictures]
            key = "image_url" if as_url else "image"
            parts = [{"type": key, key: image} for image in images]
            messages.append({"role": role, "content": [*parts, {"type": "text", "text": text}]})
        return messages


def open_picture(number: int) -> Image.Image:
    return Image.open(EXAMPLES / f"scene-{number}.png").convert("RGB")


def build_url(number: int) -> dict[str, str]:
    data = io.BytesIO()
    open_picture(number).save(data, format="PNG")
    return {"url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")}


def build_requests() -> list[Request]:
    """Build all requests; neighbours differ in length, number of images and end."""
    found = []

    def add(kind: str, *turns: tuple[str, tuple[int, ...], str]) -> None:
        # Every other answer is forced to a length of its own.
        forced = len(found) % 2 == 1
        found.append(Request(kind, turns, 7 + 5 * (len(found) % 9) if forced else 64, forced))

    for number in range(1, 6):
        first, second = QUESTIONS[number % 4], QUESTIONS[(number + 1) % 4]
        add("one image", ("user", (number,), first))
        add("text", ("user", (), second))
        add("one image", ("user", (number,), second))
        other = number % 5 + 1
        add("several images", ("user", (number, other), first))
        add(
            "conversation",
            ("user", (number,), QUESTIONS[0]),
            ("assistant", (), "There is 1 digit."),
            ("user", (), second),
        )
    add("several images", ("user", (3, 1, 5), QUESTIONS[0]))
    # The same words before the same number of other images: a cache by text alone would fail.
    add("several images", ("user", (4, 2, 5), QUESTIONS[0]))
    add("text", ("system", (), "Be brief."), ("user", (), QUESTIONS[1]))
    add("text", ("user", (), LONG_TEXT + QUESTIONS[0]))
    add("one image", ("user", (2,), LONG_TEXT + QUESTIONS[0]))
    return found
