r"""From a row as it is stored to messages that the processor reads, or to the fault of the row.

Known forms, told apart by their keys:

    conversations   LLaVA's: [{"from": "human" | "gpt", "value": text}], images in `image`, marks
                    `<image>` in the text; a first turn from gpt is dropped, as LLaVA drops it
    messages        the Hub's: [{"role", "content"}], content a string or a list of parts, images
                    in `images`
    prompt,         the same, cut in two
    completion

LLaVA writes the marks of a turn in front of its text, each with a line break, and strips the text:

    "Look:\n<image>\nhere "    ->    "<image>\nLook:\n\nhere"

so marks become image parts, which the chat templates write in this way. A turn of images alone has
no line break in LLaVA (it strips once more); it is passed as a string, which templates leave alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .row_faults import RowFault

IMAGE_MARK = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_IMAGE_KEYS = ("image", "path", "bytes")


@dataclass(frozen=True)
class Conversation:
    """A row that can be trained on, as far as its text and the number of its images tell.

    Attributes:
        messages: {"role", "content"} messages, one image part (or mark) an image.
        images: The images in the order of their marks, as the row gives them: paths, bytes,
            {"bytes", "path"} records or Pillow images.
    """

    messages: list[dict[str, Any]]
    images: list[Any]

    @property
    def num_characters(self) -> int:
        """Characters of all turns."""
        return sum(len(get_text(message)) for message in self.messages)


@dataclass
class _Turn:
    """A turn before its checks: text without marks, and for each mark which image, if it says."""

    role: str
    text: str
    image_numbers: list[int | None]


def get_text(message: dict[str, Any]) -> str:
    """Join what a message says.

    Args:
        message: A message of a `Conversation`.

    Returns:
        Its text, without image parts.
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def parse_conversation(
    row: Any, form: str | None = None, template: str = "vicuna_v1", image_token: str = IMAGE_MARK
) -> Conversation:
    """Turn a stored row into messages and images, and check it.

    Args:
        row: The row.
        form: "llava", "messages", or None to tell it from the row.
        template: The chat template; under "plain" the row is its images and one caption.
        image_token: How the processor writes an image mark.

    Returns:
        The conversation.

    Raises:
        RowFault: If the row cannot be trained on.
    """
    if not isinstance(row, dict):
        raise RowFault(f"the row is a {type(row).__name__}, expected an object")
    images: list[Any] = []
    turns = [_read_turn(turn, place, images) for place, turn in enumerate(_get_turns(row, form))]
    if "conversations" in row and turns:
        first = 1 if turns[0].role == "system" else 0
        if len(turns) > first and turns[first].role == "assistant":
            del turns[first]
    images = images or _get_images(row)
    _check_turns(turns, template)
    images = _order_images(turns, images, is_marked=_uses_marks(row, form))
    if template == "plain":
        messages = _build_caption(turns, image_token)
    else:
        messages = [_build_message(turn, image_token) for turn in turns]
    return Conversation(messages, images)


def _uses_marks(row: dict[str, Any], form: str | None) -> bool:
    """Whether images without any mark are a fault; the Hub's form leaves the marks out."""
    return form == "llava" or (form is None and "conversations" in row)


def _get_turns(row: dict[str, Any], form: str | None) -> list[Any]:
    names = {"llava": ("conversations",), "messages": ("messages", "prompt")}
    wanted = names[form] if form else ("conversations", "messages", "prompt")
    found = [name for name in wanted if row.get(name) is not None]
    if not found:
        raise RowFault(
            f"the row has the keys {sorted(map(str, row))[:8]}, expected "
            f"{' or '.join(repr(name) for name in wanted)}"
        )
    names_of_turns = ("prompt", "completion") if found[0] == "prompt" else (found[0],)
    turns: list[Any] = []
    for name in names_of_turns:
        value = row.get(name)
        if isinstance(value, dict):
            value = _transpose(value)
        if not isinstance(value, list):
            raise RowFault(f"{name!r} is {_show(value)}, expected a list of turns")
        turns += value
    return turns


def _transpose(columns: dict[str, Any]) -> Any:
    """Turn {"from": [...], "value": [...]}, as `datasets` once stored lists, into a list."""
    lists = list(columns.values())
    if not lists or not all(isinstance(x, list) and len(x) == len(lists[0]) for x in lists):
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _get_images(row: dict[str, Any]) -> list[Any]:
    for name in ("image", "images"):
        value = row.get(name)
        if value is None:
            continue
        images = value if isinstance(value, list) else [value]
        for image in images:
            is_record = isinstance(image, dict) and (image.get("bytes") or image.get("path"))
            is_image = isinstance(image, bytes) or hasattr(image, "convert")
            if not (is_record or is_image or (isinstance(image, str) and image)):
                raise RowFault(f"{name!r} holds {_show(image)}, expected the path of an image")
        return list(images)
    return []


def _read_turn(turn: Any, place: int, images: list[Any]) -> _Turn:
    if not isinstance(turn, dict):
        raise RowFault(f"turn {place} is {_show(turn)}, expected an object")
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in ROLES:
        raise RowFault(
            f"turn {place} is from {_show(role)}, expected one of {', '.join(ROLES)}",
            "unknown_role",
        )
    content = turn.get("value", turn.get("content"))
    if isinstance(content, str):
        parts: list[Any] = [{"type": "text", "text": content}]
    elif isinstance(content, list):
        parts = content
    else:
        raise RowFault(f"turn {place} says {_show(content)}, expected text")
    texts: list[str] = []
    numbers: list[int | None] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            numbers += [None] * part["text"].count(IMAGE_MARK)
            texts.append(part["text"])
        elif kind == "image":
            numbers.append(_read_index(part, place))
            images += [part[key] for key in _IMAGE_KEYS if part.get(key) is not None][:1]
        else:
            raise RowFault(f"turn {place} holds {_show(part)}, expected a text or an image part")
    text = "".join(texts)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            f"turn {place} holds half of a surrogate pair at character {error.start}, expected text"
        ) from None
    if numbers:
        text = text.replace(IMAGE_MARK, "").strip()
    return _Turn(ROLES[role], text, numbers)


def _read_index(part: dict[str, Any], place: int) -> int | None:
    index = part.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise RowFault(f"turn {place} names image {_show(index)}, expected its number from 0")
    return index


def _check_turns(turns: list[_Turn], template: str) -> None:
    """Check the order of the turns and what each holds."""
    system = turns[:1] if turns and turns[0].role == "system" else []
    others = turns[len(system) :]
    for place, turn in enumerate(others):
        expected = ("user", "assistant")[place % 2]
        if turn.role != expected:
            found = f"turn {place + len(system)} is the {turn.role}'s"
            raise RowFault(
                f"{found}, expected the {expected}'s: user and assistant in turn", "turn_order"
            )
    for place, turn in enumerate(turns):
        if turn.role != "user" and turn.image_numbers:
            raise RowFault(
                f"turn {place} is the {turn.role}'s and holds {len(turn.image_numbers)} image "
                "marks, expected marks in user turns only",
                "image_in_answer",
            )
        if turn.role == "assistant" and not turn.text.strip():
            raise RowFault(f"the answer in turn {place} is empty, expected text", "empty_answer")
        if turn.role == "user" and not (turn.text.strip() or turn.image_numbers):
            raise RowFault(
                f"the question in turn {place} is empty, expected text", "empty_question"
            )
    num_answers = sum(turn.role == "assistant" for turn in turns)
    if not num_answers:
        raise RowFault(
            f"found {len(turns)} turns and no answer, expected at least one", "no_answer"
        )
    if template == "plain" and len(others) != 2:
        raise RowFault(
            f"found {len(others)} turns, expected 2, an image and its caption, as the 'plain' form "
            "of stage 1 has them",
            "turn_order",
        )


def _order_images(turns: list[_Turn], images: list[Any], is_marked: bool) -> list[Any]:
    """Check marks against images, and bring the images into the order of their marks."""
    users = [turn for turn in turns if turn.role == "user"]
    numbers = [number for turn in users for number in turn.image_numbers]
    if not numbers and images and not is_marked:
        # Conversations of the Hub whose contents are strings say nothing about their images, which
        # then belong to the first question.
        users[0].image_numbers = [None] * len(images)
        users[0].text = users[0].text.strip()
        return images
    if len(numbers) != len(images):
        raise RowFault(
            f"found {len(numbers)} {IMAGE_MARK} in the user's turns and {len(images)} "
            f"image{'s' * (len(images) != 1)}, expected one an image",
            "image_count",
        )
    if all(number is None for number in numbers):
        return images
    known = [number for number in numbers if number is not None]
    if sorted(known) != list(range(len(images))):
        raise RowFault(
            f"the image parts name the images {numbers}, expected each of 0 to {len(images) - 1} "
            "once",
            "image_count",
        )
    return [images[number] for number in known]


def _build_message(turn: _Turn, image_token: str) -> dict[str, Any]:
    num_images = len(turn.image_numbers)
    if not num_images:
        return {"role": turn.role, "content": turn.text}
    if not turn.text:
        marks = "\n".join([image_token] * num_images)
        return {"role": turn.role, "content": marks}
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
    return {"role": turn.role, "content": [*content, {"type": "text", "text": turn.text}]}


def _build_caption(turns: list[_Turn], image_token: str) -> list[dict[str, Any]]:
    """Build stage 1's row: what the user and the system say is dropped, as LLaVA drops it."""
    user, caption = turns[-2:]
    if not user.image_numbers:
        raise RowFault(
            "found no image, expected one: the 'plain' form of stage 1 is an image and its caption",
            "image_count",
        )
    content = [{"type": "image"} for _ in user.image_numbers]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": caption.text},
    ]


def _show(value: Any) -> str:
    return repr(value)[:80]
