"""Estimated lengths of rows, from their characters: exact ones would tokenise all data twice.

tokens = frame + characters x (tokens a character) + images x (tokens an image), with the frame (the
system sentence) and the images exact and the tokens a character measured on the first rows.
"""

from __future__ import annotations

from array import array

from ..processing import HyperLlavaProcessor
from .row_conversations import Conversation, get_text

NUM_SAMPLED_ROWS = 64
SAMPLED_CHARACTERS = 2000


class LengthEstimator:
    """Collect rows, then estimate the tokens of each.

    Args:
        processor: Has the tokenizer, and knows the tokens of an image.
        template: The chat template around the turns.
    """

    def __init__(self, processor: HyperLlavaProcessor, template: str) -> None:
        self.tokenizer = processor.tokenizer
        self.tokens_an_image = processor.image_seq_length
        messages = [
            {"role": "user", "content": processor.image_token},
            {"role": "assistant", "content": ""},
        ]
        frame = processor.apply_chat_template(messages, chat_template=template)
        self.frame = self._count(frame.replace(processor.image_token, ""))
        self._characters = array("q")
        self._images = array("q")
        self._sample: list[str] = []

    def add(self, conversation: Conversation) -> None:
        """Take note of a row.

        Args:
            conversation: The row.
        """
        texts = [get_text(message) for message in conversation.messages]
        self._characters.append(sum(map(len, texts)))
        self._images.append(len(conversation.images))
        if len(self._sample) < NUM_SAMPLED_ROWS:
            self._sample.append(" ".join(texts)[:SAMPLED_CHARACTERS])

    def estimate(self) -> list[int]:
        """Estimate every row.

        Returns:
            Tokens of each row in order, negative for a row without images (LLaVA's convention).
        """
        num_characters = sum(map(len, self._sample))
        rate = sum(map(self._count, self._sample)) / max(1, num_characters)
        lengths = []
        for characters, images in zip(self._characters, self._images, strict=True):
            text = max(1, self.frame + round(characters * rate))
            lengths.append(text + images * self.tokens_an_image if images else -text)
        return lengths

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
