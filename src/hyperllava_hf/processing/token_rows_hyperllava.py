r"""Token rows of a batch: expand image marks, check lengths, truncate, pad.

A row is a dict of equally long lists, one per column (`input_ids`, `attention_mask`, `labels`,
...). Marks are expanded on ids rather than in the text, so offsets keep pointing into the text as
the user wrote it:

    before   BOS USER : <image> \n Q        one image, 4 tokens an image
    after    BOS USER : <image> <image> <image> <image> \n Q
"""

import re
from typing import Any

from .labels_hyperllava import IGNORED_LABEL

Row = dict[str, list[Any]]


_PADDING_VALUES = {
    "attention_mask": 0,
    "labels": IGNORED_LABEL,
    "guidance_mask": 0,
    "assistant_masks": 0,
    "mm_token_type_ids": 0,
    "token_type_ids": 0,
    "offset_mapping": (0, 0),
    "special_tokens_mask": 1,
}


def check_mark_count(num_marks: int, num_images: int, mark: str, where: str) -> None:
    """Compare image marks with images.

    Args:
        num_marks: Marks in the prompt.
        num_images: Images given for it.
        mark: The image token.
        where: Name of the sample for messages to the user.

    Raises:
        ValueError: If the numbers differ.
    """
    if num_marks == num_images:
        return
    advice = (
        f"Add {num_images - num_marks} {mark} to the prompt, or pass fewer images"
        if num_marks < num_images
        else f"Pass {num_marks - num_images} more, or remove {mark} from the prompt"
    )
    raise ValueError(
        f"{where} has {num_marks} {mark} mark{'s' * (num_marks != 1)} and {num_images} image"
        f"{'s' * (num_images != 1)}, expected one mark an image. {advice}. The processor itself "
        "expands a mark to the tokens of its image."
    )


def expand_image_marks(row: Row, image_token_id: int, tokens_per_image: int) -> Row:
    """Repeat every column at the image marks.

    Args:
        row: Columns of one sample, one mark an image.
        image_token_id: Id of the mark.
        tokens_per_image: Positions that an image takes.

    Returns:
        The expanded row.
    """
    marks = [position for position, token in enumerate(row["input_ids"]) if token == image_token_id]
    if not marks or tokens_per_image == 1:
        return row
    expanded: Row = {name: [] for name in row}
    last = 0
    for mark in marks:
        for name, column in row.items():
            expanded[name] += column[last:mark] + [column[mark]] * tokens_per_image
        last = mark + 1
    for name, column in row.items():
        expanded[name] += column[last:]
    return expanded


def describe_expansions(text: str, mark: str, expansion: str) -> list[dict[str, Any]]:
    """Tell what each image mark of a text becomes, in the form of transformers 5.

    Args:
        text: A prompt.
        mark: The image token.
        expansion: What stands for one image.

    Returns:
        For each mark its character range before ("span") and after ("new_span"), "text" and
        "replacement".
    """
    found = []
    gained = 0
    for match in re.finditer(re.escape(mark), text):
        start = match.start() + gained
        found.append(
            {
                "type": "image",
                "span": match.span(),
                "new_span": (start, start + len(expansion)),
                "text": mark,
                "replacement": expansion,
            }
        )
        gained += len(expansion) - len(mark)
    return found


def fit_to_length(
    row: Row,
    limit: int | None,
    truncation_side: str | None,
    image_token_id: int,
    bos_token_id: int | None,
    where: str,
) -> Row:
    """Check a row against the context length, or cut it.

    Args:
        row: Columns of one sample, marks expanded.
        limit: Longest allowed row; None for no limit.
        truncation_side: "left" or "right" to cut, None to refuse.
        image_token_id: Id of the image token.
        bos_token_id: Id that stays first when the left is cut; None if there is none.
        where: Name of the sample for messages to the user.

    Returns:
        The row, at most `limit` long.

    Raises:
        ValueError: If the row is too long and cutting was not asked for or would cut image tokens.
    """
    length = len(row["input_ids"])
    if limit is None or length <= limit:
        return row
    num_image_tokens = row["input_ids"].count(image_token_id)
    found = (
        f"{where} has {length} tokens, {num_image_tokens} of them image tokens; expected at most "
        f"{limit}"
    )
    if truncation_side is None:
        raise ValueError(
            f"{found} (the tokenizer's model_max_length, or max_length). Shorten the prompt, use "
            "fewer images, raise the limit if the model allows it, or pass truncation=True to cut "
            "text."
        )
    keep = 1 if truncation_side == "left" and row["input_ids"][0] == bos_token_id else 0
    cut = (
        {name: column[:limit] for name, column in row.items()}
        if truncation_side == "right"
        else {name: column[:keep] + column[length - limit + keep :] for name, column in row.items()}
    )
    lost = num_image_tokens - cut["input_ids"].count(image_token_id)
    if lost:
        raise ValueError(
            f"{found}, and cutting on the {truncation_side} would cut {lost} image tokens. Raise "
            f"max_length to at least {length}, shorten the prompt, or use fewer images."
        )
    return cut


def pad_rows(
    rows: list[Row],
    padding: bool | str,
    side: str,
    pad_token_id: int | None,
    max_length: int | None,
    multiple: int | None,
) -> dict[str, list[list[Any]]]:
    """Bring rows to one length and turn them into columns of a batch.

    Args:
        rows: Columns of each sample.
        padding: True or "longest", "max_length", False or "do_not_pad", as in transformers.
        side: "left" or "right".
        pad_token_id: Id of the padding; None if the tokenizer has none.
        max_length: Length for "max_length".
        multiple: Round the length up to a multiple of this; None does not.

    Returns:
        Column name to rows.

    Raises:
        ValueError: If the padding cannot be done as asked.
    """
    strategy = getattr(padding, "value", padding)
    if not isinstance(strategy, str):
        strategy = "longest" if strategy else "do_not_pad"
    if strategy not in ("longest", "max_length", "do_not_pad") or side not in ("left", "right"):
        raise ValueError(
            f"padding={padding!r} with padding_side={side!r}; expected True, 'longest', "
            "'max_length' or False, and 'left' or 'right'. Use padding=True."
        )
    lengths = [len(row["input_ids"]) for row in rows]
    if strategy == "max_length" and not max_length:
        raise ValueError(
            "padding='max_length' needs a length: pass max_length, or use padding=True."
        )
    target = 0 if strategy == "do_not_pad" else max(lengths)
    if strategy == "max_length" and max_length:
        target = max(target, max_length)
    if target and multiple:
        target = -(-target // multiple) * multiple
    if target > min(lengths) and pad_token_id is None:
        raise ValueError(
            "the tokenizer has no padding token, and rows of different lengths need one. Set "
            "processor.tokenizer.pad_token = processor.tokenizer.unk_token, or build the processor "
            "with build_processor."
        )
    batch: dict[str, list[list[Any]]] = {name: [] for name in rows[0]}
    for row, length in zip(rows, lengths, strict=True):
        for name, column in row.items():
            value = pad_token_id if name == "input_ids" else _PADDING_VALUES[name]
            filling = [value] * max(0, target - length)
            batch[name].append(filling + column if side == "left" else column + filling)
    return batch
