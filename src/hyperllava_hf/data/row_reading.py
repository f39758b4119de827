"""The steps from a stored row to an encoded one, each of which may find a fault."""

from __future__ import annotations

import json
from typing import Any

from .data_source import DataSource
from .row_conversations import Conversation, get_text, parse_conversation
from .row_encoding import Row, RowEncoder
from .row_faults import BadRow, RowFault
from .row_images import load_row_images


def parse_row(value: Any, source: DataSource, encoder: RowEncoder) -> Conversation:
    """Parse a stored row, or raise the fault that stands in its place.

    Args:
        value: The stored row.
        source: Where it is from.
        encoder: Tells template and image token.

    Returns:
        The conversation.

    Raises:
        RowFault: If the row cannot be trained on.
    """
    if isinstance(value, RowFault):
        raise value
    return parse_conversation(value, source.format, encoder.template, encoder.processor.image_token)


def encode_row(value: Any, number: int, source: DataSource, encoder: RowEncoder) -> Row:
    """Parse, decode and encode a stored row.

    Args:
        value: The stored row.
        number: Its number.
        source: Where it is from.
        encoder: Makes tokens and pixels.

    Returns:
        The row.

    Raises:
        RowFault: If the row cannot be trained on.
    """
    conversation = parse_row(value, source, encoder)
    row = encoder.encode(conversation, load_row_images(conversation.images, source))
    row.number = number
    return row


def describe(fault: RowFault, name: str, number: int, value: Any) -> BadRow:
    """Say which row a fault belongs to.

    Args:
        fault: The fault.
        name: The source's name.
        number: The row's number.
        value: The stored row, for its id.

    Returns:
        The bad row.
    """
    return BadRow(name, number, read_id(value), fault.kind, fault.text)


def read_id(value: Any) -> Any:
    """Read a stored row's id, which is for messages alone.

    Args:
        value: The stored row.

    Returns:
        A text or a number; None where there is none, or another kind of value.
    """
    row_id = value.get("id") if isinstance(value, dict) else None
    # Anything nested may be deeper than what shows it can follow.
    return row_id if isinstance(row_id, str | int | float) else None


def summarize(conversation: Conversation) -> bytes:
    """Write what makes a row this row, for a hash: turns, marks, and images that have a name.

    Args:
        conversation: The row.

    Returns:
        Bytes that end where the row ends.
    """
    names = [image if isinstance(image, str) else "" for image in conversation.images]
    turns = [(message["role"], get_text(message)) for message in conversation.messages]
    return json.dumps([turns, names]).encode() + b"\n"
