"""Place labels and guidance on tokens, from the character ranges of what the assistant says.

Before (characters), after (tokens; `.` is -100 or 0):

    text       SYS USER: <image>|Q ASSISTANT:| 7</s>|USER: R ASSISTANT:| 8</s>
    span                                     |------|                  |------|
    labels     . . . .       . . .        .    7 </s>  . . . .      .     8 </s>
    guidance   1 1 1 1       1 1 1        1    .  .    . . . .      .     .  .
"""

IGNORED_LABEL = -100

Offsets = list[tuple[int, int]]


def assistant_token_mask(offsets: Offsets, spans: list[tuple[int, int]], where: str) -> list[int]:
    """Mark the tokens that the assistant says.

    Args:
        offsets: Character range of each token; zero-width for tokens that the tokenizer adds.
        spans: Character ranges of the assistant's words, ascending.
        where: Name of the sample for messages to the user.

    Returns:
        1 on the assistant's tokens and 0 elsewhere.

    Raises:
        ValueError: If a token lies half inside a span, so that the prompt would not be what
            `generate` sees.
    """
    mask = [0] * len(offsets)
    remaining = iter(spans)
    span = next(remaining, None)
    for position, (start, end) in enumerate(offsets):
        while span is not None and start >= span[1] and end > start:
            span = next(remaining, None)
        if span is None:
            break
        if start < end and start < span[1] and end > span[0]:
            if start < span[0]:
                raise _no_boundary(position, (start, end), span[0], where)
            mask[position] = 1
    return mask


def count_prompt_tokens(offsets: Offsets, prompt_end: int | None, where: str) -> int:
    """Count the tokens of the first prompt.

    Args:
        offsets: Character range of each token.
        prompt_end: Characters before the first assistant turn's content; None without an assistant
            turn.
        where: Name of the sample for messages to the user.

    Returns:
        Number of leading tokens that belong to the first prompt; all tokens without an assistant
        turn.

    Raises:
        ValueError: If a token lies half inside the prompt.
    """
    if prompt_end is None:
        return len(offsets)
    for position, (start, end) in enumerate(offsets):
        # Zero-width tokens at the front are the tokenizer's own and belong to the prompt.
        if end > prompt_end and end > start:
            if start < prompt_end:
                raise _no_boundary(position, (start, end), prompt_end, where)
            return position
    return len(offsets)


def _no_boundary(position: int, offset: tuple[int, int], boundary: int, where: str) -> ValueError:
    """Say that an answer begins inside a token: `generate` would see another prompt."""
    return ValueError(
        f"{where}: token {position} covers characters {offset[0]} to {offset[1]}, across the "
        f"beginning of an answer at {boundary}; expected a token boundary there. Use a tokenizer "
        "that splits words before white space (Metaspace or ByteLevel pre-tokenizer)."
    )


def build_labels(input_ids: list[int], assistant_mask: list[int], never: set[int]) -> list[int]:
    """Build the labels of one sample.

    Args:
        input_ids: Token ids.
        assistant_mask: 1 on the assistant's tokens.
        never: Ids that are never supervised: the image token.

    Returns:
        The id where the assistant speaks, -100 elsewhere.
    """
    return [
        token if said and token not in never else IGNORED_LABEL
        for token, said in zip(input_ids, assistant_mask, strict=True)
    ]
