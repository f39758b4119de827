"""Bring conversations, as people and servers write them, to one form, and collect their images.

A conversation is a list of {"role", "content"} messages; content is a string or a list of parts.
Images leave the messages here (a template needs to know only that there is one), which also keeps
base64 text and pixel arrays out of the renderer.
"""

from typing import Any

_IMAGE_KEYS = ("image", "url", "path", "base64", "bytes")


def split_batch(conversation: Any) -> tuple[list[list[Any]], bool]:
    """Tell one conversation from a batch of them.

    Args:
        conversation: A list of messages or a list of such lists.

    Returns:
        The conversations, and whether a batch was given.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(
            f"found {repr(conversation)[:80]}, expected a list of messages such as "
            '[{"role": "user", "content": "Hello"}], or a list of conversations. Pass one of these.'
        )
    first = conversation[0]
    if isinstance(first, (list, tuple)):
        return [list(messages) for messages in conversation], True
    if hasattr(first, "messages"):
        return [list(chat.messages) for chat in conversation], True
    return [list(conversation)], False


def normalize_messages(messages: list[Any], where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Check one conversation and take its images out.

    Args:
        messages: Messages with string or list contents; OpenAI's "image_url" parts are understood.
        where: Name of the conversation for messages to the user.

    Returns:
        Messages that a template can render, and the images in reading order. A part that only marks
        an image ({"type": "image"} without one) stays a mark.

    Raises:
        ValueError: If a message is not of this form.
    """
    if not messages:
        raise ValueError(f"{where} is an empty conversation, expected at least one user message.")
    cleaned: list[dict[str, Any]] = []
    images: list[Any] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"{where}, message {index}: found {repr(message)[:80]}, expected a dict "
                "with 'role' and 'content'. "
                'Write {"role": "user", "content": "..."}.'
            )
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list, tuple)):
            raise ValueError(
                f"{where}, message {index}: content is a {type(content).__name__}, expected a "
                'string or a list of parts. Write it as text or as {"type": "text", "text": "..."}.'
            )
        if isinstance(content, (list, tuple)):
            content = [
                _normalize_part(part, images, f"{where}, message {index}") for part in content
            ]
        rest = {
            key: value for key, value in message.items() if key != "content" and value is not None
        }
        cleaned.append({**rest, "content": "" if content is None else content})
    return cleaned, images


def _normalize_part(part: Any, images: list[Any], where: str) -> dict[str, Any]:
    """Reduce a part of a content list to text or a mark; an image goes to `images`."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image_url", "input_image"):
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, dict) else value
        part, kind = {"url": url}, "image"
    if kind == "image":
        found = [part[key] for key in _IMAGE_KEYS if part.get(key) is not None]
        images.extend(found[:1])
        return {"type": "image"}
    raise ValueError(
        f"{where}: found the part {repr(part)[:80]}, expected text or image. Write "
        '{"type": "text", "text": "..."} or {"type": "image", "path": "..."}.'
    )


def name_sample(index: int, total: int) -> str:
    """Name a row of a batch for messages to the user.

    Args:
        index: Place in the batch.
        total: Size of the batch.

    Returns:
        "sample 3", or "the prompt" if there is only one.
    """
    return f"sample {index}" if total > 1 else "the prompt"
