"""From rendered conversations to token rows with labels and masks, and from rows to a batch."""

from typing import Any

from .call_arguments_hyperllava import TextArguments
from .conversations_hyperllava import name_sample
from .labels_hyperllava import assistant_token_mask, build_labels, count_prompt_tokens
from .rendering_hyperllava import RenderedChat
from .token_rows_hyperllava import Row, fit_to_length, pad_rows
from .tokenizer_parts_hyperllava import get_length_limit


def tokenize_chats(
    tokenizer: Any,
    chats: list[RenderedChat],
    arguments: TextArguments,
    extras: tuple[str, ...],
    image_token_id: int,
) -> list[Row]:
    """Tokenise texts with their image marks still single.

    Args:
        tokenizer: A fast tokenizer.
        chats: Rendered conversations or plain prompts.
        arguments: Arguments of the call.
        extras: Columns to add: "guidance_mask", "assistant_masks", "labels".
        image_token_id: Id of the image token.

    Returns:
        One row of columns a text.

    Raises:
        ValueError: If an answer does not begin at a token boundary.
    """
    encoded = tokenizer(
        [chat.text for chat in chats],
        add_special_tokens=arguments.add_special_tokens,
        return_attention_mask=True,
        return_token_type_ids=bool(arguments.return_token_type_ids),
        return_special_tokens_mask=arguments.return_special_tokens_mask,
        return_offsets_mapping=bool(extras) or arguments.return_offsets_mapping,
        verbose=False,
    )
    rows = []
    for index, chat in enumerate(chats):
        row: Row = {name: list(column[index]) for name, column in encoded.items()}
        offsets = row.get("offset_mapping", [])
        if not arguments.return_offsets_mapping:
            row.pop("offset_mapping", None)
        _add_columns(row, offsets, chat, extras, image_token_id, name_sample(index, len(chats)))
        if arguments.return_mm_token_type_ids:
            row["mm_token_type_ids"] = [int(token == image_token_id) for token in row["input_ids"]]
        rows.append(row)
    return rows


def _add_columns(
    row: Row,
    offsets: list[tuple[int, int]],
    chat: RenderedChat,
    extras: tuple[str, ...],
    image_token_id: int,
    where: str,
) -> None:
    """Add what the places of the assistant's words say about the tokens."""
    ids = row["input_ids"]
    if "guidance_mask" in extras:
        count = count_prompt_tokens(offsets, chat.prompt_end, where)
        row["guidance_mask"] = [1] * count + [0] * (len(ids) - count)
    if "labels" in extras or "assistant_masks" in extras:
        said = assistant_token_mask(offsets, chat.spans, where)
        if "assistant_masks" in extras:
            row["assistant_masks"] = said
        if "labels" in extras:
            row["labels"] = build_labels(ids, said, {image_token_id})


def fit_and_pad(
    tokenizer: Any,
    rows: list[Row],
    arguments: TextArguments,
    extras: tuple[str, ...],
    image_token_id: int,
) -> dict[str, list[list[Any]]]:
    """Hold rows against the context length and bring them to one length.

    Args:
        tokenizer: Gives limits, sides and padding id where the call names none.
        rows: Rows with their marks expanded.
        arguments: Arguments of the call.
        extras: Columns that were added.
        image_token_id: Id of the image token.

    Returns:
        Column name to rows.

    Raises:
        ValueError: If a row is too long.
    """
    limit = arguments.max_length or get_length_limit(tokenizer)
    cut_side = tokenizer.truncation_side if arguments.truncates else None
    fitted = [
        fit_to_length(
            row,
            limit,
            cut_side,
            image_token_id,
            tokenizer.bos_token_id,
            name_sample(index, len(rows)),
        )
        for index, row in enumerate(rows)
    ]
    side = arguments.padding_side or ("right" if "labels" in extras else tokenizer.padding_side)
    batch = pad_rows(
        fitted, arguments.padding, side, tokenizer.pad_token_id, limit, arguments.pad_to_multiple_of
    )
    if arguments.return_attention_mask is False:
        del batch["attention_mask"]
    return batch
