"""From a row to its tokens, labels and pixels, cut to the context length behind its images.

Cutting, at max_length 8 (i image tokens, q question, a answer; two rows):

    before   q i i i i q q a a a        q q q q q q i i i i q a a
    after    q i i i i q q a            refused: the images end at token 10
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..processing import HyperLlavaProcessor
from ..processing.labels_hyperllava import IGNORED_LABEL
from ..processing.tokenizer_parts_hyperllava import get_length_limit
from .row_conversations import Conversation
from .row_faults import RowFault

# The processor refuses long rows before they can be cut here, so it is told that none is too long.
_UNLIMITED = 10**9
COLUMNS = ("input_ids", "labels", "guidance_mask")


@dataclass
class Row:
    """One row as the model takes it, not yet padded.

    Attributes:
        input_ids: Token ids; an image takes `processor.image_seq_length` of them.
        labels: The ids that the assistant says, -100 elsewhere.
        guidance_mask: 1 on the first prompt, 0 elsewhere.
        pixel_values: (images, 3, height, width) in float32; None without images.
        number: The row's number in its file.
        num_skipped: Bad rows in whose place this row stands.
        num_tokens: Tokens before the row was cut.
    """

    input_ids: list[int]
    labels: list[int]
    guidance_mask: list[int]
    pixel_values: np.ndarray | None
    number: int = 0
    num_skipped: int = 0
    num_tokens: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


class RowEncoder:
    """Encode conversations for training.

    Args:
        processor: The processor.
        template: "plain", "vicuna_v1", or whatever else the processor knows.
        max_length: Longest row in tokens; None takes the tokenizer's own limit, if it states one.

    Raises:
        ValueError: If an image alone is longer than `max_length`, or the template is unknown.
    """

    def __init__(
        self, processor: HyperLlavaProcessor, template: str, max_length: int | None
    ) -> None:
        processor.get_chat_template(template)
        self.processor = processor
        self.template = template
        own_limit = get_length_limit(processor.tokenizer)
        self.max_length = own_limit if max_length is None else max_length
        if self.max_length is not None and self.max_length <= processor.image_seq_length:
            raise ValueError(
                f"found max_length {self.max_length}, expected more than the "
                f"{processor.image_seq_length} tokens of one image. Raise max_length."
            )

    def encode(self, conversation: Conversation, images: list[Image.Image]) -> Row:
        """Encode one conversation.

        Args:
            conversation: What is said.
            images: Its images, decoded.

        Returns:
            The row, at most `max_length` long.

        Raises:
            RowFault: If the processor refuses the row, or if its images or answers do not fit.
        """
        try:
            encoded = self.processor.apply_chat_template(
                conversation.messages,
                chat_template=self.template,
                images=[images] if images else None,
                tokenize=True,
                return_dict=True,
                return_labels=True,
                max_length=_UNLIMITED,
            )
        except ValueError as error:
            raise RowFault(f"the processor refuses the row: {error}", "refused") from None
        columns = {name: _unbatch(encoded[name]) for name in COLUMNS}
        pixel_values = np.asarray(encoded["pixel_values"]) if images else None
        cut = self._cut(columns)
        num_tokens = len(columns["input_ids"])
        return Row(
            cut["input_ids"],
            cut["labels"],
            cut["guidance_mask"],
            pixel_values,
            num_tokens=num_tokens,
        )

    def _cut(self, columns: dict[str, list[int]]) -> dict[str, list[int]]:
        """Drop what lies beyond `max_length`, as long as it is text."""
        ids, limit = columns["input_ids"], self.max_length
        if limit is not None and len(ids) > limit:
            image_token = self.processor.image_token_id
            images_end = next((i for i in range(len(ids), 0, -1) if ids[i - 1] == image_token), 0)
            if images_end > limit:
                raise RowFault(
                    f"the row has {len(ids)} tokens and its images end at token {images_end}, "
                    f"expected them within the first {limit} (max_length)",
                    "too_long",
                )
            columns = {name: column[:limit] for name, column in columns.items()}
            if all(label == IGNORED_LABEL for label in columns["labels"]):
                raise RowFault(
                    f"the row has {len(ids)} tokens and its first answer begins behind token "
                    f"{limit} (max_length), expected at least a part of an answer before it",
                    "too_long",
                )
        return columns


def _unbatch(column: Any) -> list[int]:
    """Take the row out of a batch of one."""
    return list(column[0]) if len(column) and isinstance(column[0], list) else list(column)
