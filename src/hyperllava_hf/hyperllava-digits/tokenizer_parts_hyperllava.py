"""What the processor needs of a tokenizer: an image token, a padding token, a length limit."""

from typing import Any

# Tokenizers without a stated limit carry a huge number (int(1e30)) instead.
_UNLIMITED = 10**9


def find_image_token_id(tokenizer: Any, image_token: str) -> int:
    """Find the one id of the image token.

    Args:
        tokenizer: A fast tokenizer.
        image_token: The mark that stands for an image.

    Returns:
        Its id.

    Raises:
        ValueError: If the tokenizer splits it or does not know it.
    """
    ids = tokenizer(image_token, add_special_tokens=False)["input_ids"]
    if (
        len(ids) != 1
        or tokenizer.convert_tokens_to_ids(image_token) != ids[0]
        or ids[0] == tokenizer.unk_token_id
    ):
        raise ValueError(
            f"the tokenizer splits the image token {image_token!r} into ids {ids}, expected one id "
            "of its own. Add it with tokenizer.add_tokens([...], special_tokens=True), or use "
            "build_processor."
        )
    return ids[0]


def add_missing_tokens(tokenizer: Any, image_token: str) -> None:
    """Add the image token, and a padding token if there is none.

    Args:
        tokenizer: A fast tokenizer; changed in place.
        image_token: The mark that stands for an image.
    """
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([image_token], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})


def get_length_limit(tokenizer: Any) -> int | None:
    """Read the context length that a tokenizer states.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        Longest row in tokens; None if none is stated.
    """
    limit = tokenizer.model_max_length
    return int(limit) if limit and limit < _UNLIMITED else None
