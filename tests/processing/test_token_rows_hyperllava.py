"""Rows of a batch: expansion, length, padding."""

import pytest

from hyperllava_hf.processing.token_rows_hyperllava import (
    check_mark_count,
    expand_image_marks,
    fit_to_length,
    pad_rows,
)
from tests.processing.builders import escape

IMAGE, BOS, PAD = 9, 1, 0


def build_row(*ids: int) -> dict[str, list[int]]:
    return {"input_ids": list(ids), "labels": [-100 if token == IMAGE else token for token in ids]}


@pytest.mark.parametrize(
    ("ids", "count", "expected"),
    [
        ([1, 9, 5], 3, [1, 9, 9, 9, 5]),
        ([9], 2, [9, 9]),
        ([9, 9], 2, [9, 9, 9, 9]),
        ([1, 9, 5, 9], 2, [1, 9, 9, 5, 9, 9]),
        ([1, 9], 1, [1, 9]),
        ([1, 5], 3, [1, 5]),
        ([], 3, []),
    ],
)
def test_marks_expand_in_every_column(ids, count, expected):
    row = expand_image_marks(build_row(*ids), IMAGE, count)
    assert row == build_row(*expected)


@pytest.mark.parametrize(
    ("marks", "images", "parts"),
    [
        (1, 0, ("1 <image> mark and 0 images", "Pass 1 more")),
        (0, 2, ("0 <image> marks and 2 images", "Add 2 <image>")),
        (3, 1, ("3 <image> marks and 1 image,", "Pass 2 more, or remove <image>")),
    ],
)
def test_mark_count_names_both_counts(marks, images, parts):
    with pytest.raises(ValueError, match=escape("sample 4 has", *parts)):
        check_mark_count(marks, images, "<image>", "sample 4")


def test_length_is_kept_cut_or_refused():
    row = build_row(1, 9, 9, 5, 6, 7)
    assert fit_to_length(row, None, None, IMAGE, BOS, "x") is row
    assert fit_to_length(row, 6, None, IMAGE, BOS, "x") is row
    assert fit_to_length(row, 4, "right", IMAGE, BOS, "x") == build_row(1, 9, 9, 5)
    late = build_row(1, 5, 6, 9, 9, 7)
    assert fit_to_length(late, 4, "left", IMAGE, BOS, "x") == build_row(1, 9, 9, 7)
    assert fit_to_length(late, 4, "left", IMAGE, None, "x") == build_row(6, 9, 9, 7)


def test_too_long_prompts_name_lengths():
    row = build_row(1, 9, 9, 5, 6, 7)
    with pytest.raises(
        ValueError, match=escape("x has 6 tokens, 2 of them image tokens", "at most 4", "Shorten")
    ):
        fit_to_length(row, 4, None, IMAGE, BOS, "x")
    with pytest.raises(
        ValueError, match=escape("6 tokens", "at most 2", "would cut 1 image tokens", "at least 6")
    ):
        fit_to_length(row, 2, "right", IMAGE, BOS, "x")
    with pytest.raises(ValueError, match="on the left would cut 2 image tokens"):
        fit_to_length(row, 4, "left", IMAGE, BOS, "x")


ROWS = [build_row(1, 5), build_row(1, 5, 6)]


@pytest.mark.parametrize(
    ("padding", "side", "length", "multiple", "expected"),
    [
        (True, "left", None, None, [[0, 1, 5], [1, 5, 6]]),
        ("longest", "right", None, None, [[1, 5, 0], [1, 5, 6]]),
        (True, "right", None, 4, [[1, 5, 0, 0], [1, 5, 6, 0]]),
        ("max_length", "left", 4, None, [[0, 0, 1, 5], [0, 1, 5, 6]]),
        (False, "left", None, None, [[1, 5], [1, 5, 6]]),
        ("do_not_pad", "left", None, None, [[1, 5], [1, 5, 6]]),
        (None, "left", None, None, [[1, 5], [1, 5, 6]]),
    ],
)
def test_padding(padding, side, length, multiple, expected):
    batch = pad_rows(ROWS, padding, side, PAD, length, multiple)
    assert batch["input_ids"] == expected
    assert batch["labels"] == [[-100 if t == PAD else t for t in row] for row in expected]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((True, "left", None, None, None), ("no padding token", "pad_token =", "build_processor")),
        (("max_length", "left", PAD, None, None), ("needs a length", "max_length")),
        (("widest", "left", PAD, None, None), ("padding='widest'", "padding=True")),
        ((True, "up", PAD, None, None), ("padding_side='up'", "'left' or 'right'")),
    ],
)
def test_padding_that_cannot_be_done_is_refused(arguments, parts):
    with pytest.raises(ValueError, match=escape(*parts)):
        pad_rows(ROWS, *arguments)


def test_one_row_needs_no_padding_token():
    assert pad_rows(ROWS[:1], True, "left", None, None, None)["input_ids"] == [[1, 5]]
