"""Rows as LLaVA reads them, derived here a second time from its rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperllava_hf.data.row_conversations import Conversation, parse_conversation
from hyperllava_hf.data.row_encoding import RowEncoder
from hyperllava_hf.data.row_faults import FAULTS, RowFault
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import build_red, build_row, open_small, say, write_rows
from tests.processing.builders import build_small_processor

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IGNORED = -100
# Conversations and how many images each has.
CONVERSATIONS: list[tuple[list[dict[str, str]], int]] = [
    (say("<image>\nWhat is this?", "A cat."), 1),
    (say("What is this?\n<image>", "A cat."), 1),
    (say("Look at <image> here ", "A cat."), 1),
    (say("<image>", "A cat."), 1),
    (say("  <image>\n  ", "A cat."), 1),
    (say("Hello there ", "Hi."), 0),
    (say("  Hello", "Hi. "), 0),
    (say("<image>\nOne?", "Yes.", "Two?", "No.", "Three?\n", "a\nb"), 1),
    (say("One?", "Yes.", "And <image>\nthis?", "No."), 1),
    (say("One?", "Yes.", "Two?"), 0),
    ([{"from": "gpt", "value": "I begin."}, *say("Why?", "So.")], 0),
    ([{"from": "gpt", "value": "I begin."}, *say("<image>\nWhy?", "So.", "And?", "Or.")], 1),
]


def derive_llava_prompt(conversation: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """LLaVA's rules by hand: the prompt, and the characters that are learnt (with the space)."""
    turns = [dict(turn) for turn in conversation]
    for turn in turns:
        if "<image>" in turn["value"]:
            rest = turn["value"].replace("<image>", "").strip()
            turn["value"] = ("<image>\n" + rest).strip()
    if turns[0]["from"] == "gpt":
        turns = turns[1:]
    text, spans = SYSTEM + " ", []
    for place, turn in enumerate(turns):
        if place % 2 == 0:
            text += "USER: " + turn["value"] + " "
        else:
            text += "ASSISTANT:"
            spans.append((len(text), len(text) + len(" " + turn["value"] + "</s>")))
            text += " " + turn["value"] + "</s>"
    return text, spans


def derive_llava_row(
    processor: HyperLlavaProcessor, text: str, spans: list[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Cut the text at its images, tokenise the pieces apart, as LLaVA's tokenizer_image_token."""
    tokenizer = processor.tokenizer
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    start = 0
    for number, piece in enumerate(text.split("<image>")):
        if number:
            ids += [processor.image_token_id] * 4
            labels += [IGNORED] * 4
            start += len("<image>")
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        for token, (left, right) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            is_learnt = any(left + start < end and right + start > begin for begin, end in spans)
            ids.append(token)
            labels.append(token if is_learnt else IGNORED)
        start += len(piece)
    return ids, labels


def encode(processor: HyperLlavaProcessor, row: dict, template: str = "vicuna_v1") -> Any:
    conversation = parse_conversation(row, None, template, processor.image_token)
    images = [build_red() for _ in conversation.images]
    return RowEncoder(processor, template, 10_000).encode(conversation, images)


# Tokenising pieces apart or together is the same for these two.
@pytest.mark.parametrize("kind", ["legacy_llama", "byte_level"])
@pytest.mark.parametrize("case", range(len(CONVERSATIONS)))
def test_token_rows_are_those_of_llavas_v1_conversation(kind: str, case: int) -> None:
    conversation, num_images = CONVERSATIONS[case]
    processor = build_small_processor(kind)
    row = encode(processor, {"conversations": conversation, "image": ["a.png"] * num_images})
    text, spans = derive_llava_prompt(conversation)
    if conversation[-1]["from"] == "human":
        text = text.removesuffix(" ")  # behind a last question; nothing is learnt from it
    ids, labels = derive_llava_row(processor, text, spans)
    assert row.input_ids == ids
    assert row.labels == labels
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert row.guidance_mask == [1] * first + [0] * (len(ids) - first)


def test_a_row_written_out_token_by_token() -> None:
    processor = build_small_processor("words")
    turns = [
        {"from": "system", "value": "Be brief."},
        *say("<image>\nWhat?", "red 7", "Why?", "so"),
    ]
    row = encode(processor, {"conversations": turns, "image": "a.png"})
    words = ["<s>", "Be", " brief", ".", " USER", ":", " ", *["<image>"] * 4, "\n", "What", "?"]
    words += [" ASSISTANT", ":", " red", " 7", "</s>", "USER", ":", " Why", "?", " ASSISTANT", ":"]
    words += [" so", "</s>"]
    ids = processor.tokenizer.convert_tokens_to_ids(words)
    assert row.input_ids == ids
    learnt = {16, 17, 18, 25, 26}
    assert row.labels == [token if i in learnt else IGNORED for i, token in enumerate(ids)]
    assert row.guidance_mask == [1] * 16 + [0] * 11
    assert row.pixel_values.shape == (1, 3, 28, 28)
    assert row.pixel_values.dtype == np.float32


@pytest.mark.parametrize("question", ["<image>\nDescribe it.", "Describe it.\n<image>", "<image>"])
def test_a_plain_row_is_the_image_the_caption_and_a_line_break(question: str) -> None:
    processor = build_small_processor("legacy_llama")
    row = encode(processor, {"conversations": say(question, "a red cat "), "image": "0"}, "plain")
    caption = processor.tokenizer("a red cat \n", add_special_tokens=False)["input_ids"]
    bos, mark = processor.tokenizer.bos_token_id, processor.image_token_id
    assert row.input_ids == [bos] + [mark] * 4 + caption
    assert row.labels == [IGNORED] * 5 + caption


def test_two_images_of_a_turn_stand_in_front_of_it_in_their_order() -> None:
    processor = build_small_processor("metaspace")
    row = {"conversations": say("this <image> or <image>\nthat?", "A."), "image": ["a", "b"]}
    found = parse_conversation(row)
    assert found.images == ["a", "b"]
    text = processor.apply_chat_template(found.messages)
    assert text.startswith(SYSTEM + " USER: <image>\n<image>\nthis  or \nthat? ASSISTANT: A.</s>")


def text_part(text: str) -> dict:
    return {"type": "text", "text": text, "index": None}


def image_part(index: int | None = None) -> dict:
    return {"type": "image", "text": None, "index": index}


SAME_ROW = {
    "llava": {"conversations": say("<image>\nWhat?", "red"), "image": "a"},
    "list": {"conversations": say("<image>\nWhat?", "red"), "image": ["a"]},
    "vsft": {
        "messages": [
            {"role": "user", "content": [text_part("What?\n"), image_part(0)]},
            {"role": "assistant", "content": [text_part("red")]},
        ],
        "images": ["a"],
    },
    "strings": {
        "messages": [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "red"},
        ],
        "images": ["a"],
    },
    "completion": {
        "prompt": [{"role": "user", "content": "What?"}],
        "completion": [{"role": "assistant", "content": "red"}],
        "images": ["a"],
    },
    "own image": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a"}, text_part("What?")]},
            {"role": "assistant", "content": "red"},
        ],
    },
    "roles of the Hub": {
        "conversations": [
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "red"},
        ],
        "images": ["a"],
    },
    "columns": {"conversations": {"from": ["human", "gpt"], "value": ["<image>What?", "red"]},
                "image": "a"},
}  # fmt: skip


@pytest.mark.parametrize("form", SAME_ROW)
def test_every_form_of_a_row_is_the_same_conversation(form: str) -> None:
    expected = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "red"},
    ]
    assert parse_conversation(SAME_ROW[form]) == Conversation(expected, ["a"])


def test_indices_of_image_parts_bring_the_images_into_the_order_of_their_marks() -> None:
    content = [image_part(1), text_part("What?"), image_part(0)]
    row = {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [text_part("red")]},
        ],
        "images": ["a", "b"],
    }
    assert parse_conversation(row).images == ["b", "a"]


def change(**fields: Any) -> dict:
    return {"conversations": say("<image>\nWhat?", "red"), "image": "a", **fields}


def speak(*turns: Any, image: Any = None) -> dict:
    return {"conversations": list(turns), "image": image}


HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}
BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "a list": ([1], "malformed", "a list, expected an object"),
    "a string": ("row", "malformed", "a str, expected an object"),
    "nothing": (None, "malformed", "NoneType"),
    "other keys": ({"text": "x"}, "malformed", r"keys \['text'\], expected 'conversations'"),
    "turns in a string": (change(conversations="x"), "malformed", "'x', expected a list of turns"),
    "turns in a dict": (change(conversations={"a": 1}), "malformed", "expected a list of turns"),
    "a turn in a string": (speak("What?"), "malformed", "turn 0 is 'What.', expected an object"),
    "no text": (speak(HUMAN, {"from": "gpt"}), "malformed", "turn 1 says None, expected text"),
    "text is a number": (speak({"from": "human", "value": 7}, GPT), "malformed", "says 7"),
    "an unknown part": (speak({"from": "human", "value": [{"type": "video"}]}, GPT), "malformed",
                        "video.*expected a text or an image part"),
    "a part of nothing": (speak({"from": "human", "value": [None]}, GPT), "malformed", "None"),
    "half a character": (speak(HUMAN, {"from": "gpt", "value": "a\ud800"}), "malformed",
                         "surrogate pair at character 1"),
    "image is a number": (change(image=3), "malformed", "'image' holds 3, expected the path"),
    "image is empty": (change(image=""), "malformed", "'image' holds ''"),
    "image holds null": (change(image=[None]), "malformed", "holds None"),
    "image without content": (change(image={"bytes": None, "path": None}), "malformed", "holds"),
    "unknown role": (speak({"from": "tool", "value": "x"}, GPT), "unknown_role", "'tool', exp"),
    "no role": (speak({"value": "x"}, GPT), "unknown_role", "turn 0 is from None"),
    "role is a list": (speak({"from": [], "value": "x"}), "unknown_role", r"from \[\]"),
    "two questions": (speak(HUMAN, HUMAN, GPT), "turn_order", "turn 1 is the user's, expected"),
    "two answers": (speak(HUMAN, GPT, GPT), "turn_order", "turn 2 is the assistant's"),
    "two answers first": (speak(GPT, GPT, HUMAN), "turn_order", "turn 0 is the assistant's"),
    "late system": (speak(HUMAN, {"from": "system", "value": "x"}, GPT), "turn_order", "system's"),
    "no turns": (speak(), "no_answer", "0 turns and no answer"),
    "only a question": (speak(HUMAN), "no_answer", "1 turns and no answer"),
    "only an answer": (speak(GPT), "no_answer", "0 turns"),
    "no answer": (speak(HUMAN, {"from": "gpt", "value": ""}), "empty_answer", "turn 1 is empty"),
    "a blank answer": (speak(HUMAN, {"from": "gpt", "value": " \n"}), "empty_answer", "turn 1"),
    "no question": (speak({"from": "human", "value": " "}, GPT), "empty_question", "turn 0 is"),
    "mark without image": (change(image=None), "image_count", "found 1 <image> .* and 0 images"),
    "image without mark": (speak(HUMAN, GPT, image="a"), "image_count", "0 <image> .* 1 image,"),
    "two marks": (change(conversations=say("<image><image>?", "x")), "image_count", "found 2"),
    "mark in an answer": (speak(HUMAN, {"from": "gpt", "value": "an <image>"}), "image_in_answer",
                          "turn 1 is the assistant's and holds 1 image marks"),
    "mark in a system turn": (speak({"from": "system", "value": "<image>"}, HUMAN, GPT),
                              "image_in_answer", "turn 0 is the system's"),
    "an index too large": ({"messages": [{"role": "user", "content": [image_part(1)]},
                                         {"role": "assistant", "content": "x"}], "images": ["a"]},
                           "image_count", r"name the images \[1\], expected each of 0 to 0"),
    "an index twice": ({"messages": [{"role": "user", "content": [image_part(0), image_part(0)]},
                                     {"role": "assistant", "content": "x"}],
                        "images": ["a", "b"]}, "image_count", r"\[0, 0\]"),
    "an index of text": ({"messages": [{"role": "user", "content": [{"type": "image",
                                                                     "index": "0"}]}],
                          "images": ["a"]}, "malformed", "names image '0'"),
    "completion missing": ({"prompt": [{"role": "user", "content": "x"}]}, "malformed",
                           "'completion' is None"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_says_what_was_found_and_what_was_expected(case: str) -> None:
    row, kind, pattern = BAD_ROWS[case]
    with pytest.raises(RowFault, match=pattern) as caught:
        parse_conversation(row)
    assert caught.value.kind == kind
    assert kind in FAULTS


def test_another_image_token_stands_in_for_llavas_mark() -> None:
    processor = build_small_processor("metaspace", image_token="<picture>")
    row = encode(processor, {"conversations": say("<image>\nWhy?", "So."), "image": "a"})
    assert row.input_ids.count(processor.image_token_id) == 4
    text = processor.tokenizer.decode(row.input_ids)
    assert "<picture>\nWhy?" in text
    assert "<image>" not in text
    with pytest.raises(
        RowFault, match=r"the processor refuses the row.*2 <picture> marks"
    ) as caught:
        encode(processor, {"conversations": say("<image> <picture>", "So."), "image": "a"})
    assert caught.value.kind == "refused"


def test_plain_refuses_what_is_no_image_and_its_caption() -> None:
    with pytest.raises(RowFault, match="found no image, expected one"):
        parse_conversation(speak(HUMAN, GPT), template="plain")
    turns = say("<image>\nOne?", "Yes.", "Two?", "No.")
    with pytest.raises(RowFault, match="found 4 turns, expected 2"):
        parse_conversation(change(conversations=turns), template="plain")


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_stops_opening_or_is_counted(
    case: str, tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor
) -> None:
    rows = [build_row(0), BAD_ROWS[case][0], build_row(1)]
    path = write_rows(tmp_path / "rows.json", rows)
    with pytest.raises(ValueError, match=r"rows\.json, row 2.*on_bad_row"):
        open_small(path, processor, image_folder=str(pictures))
    opened = open_small(path, processor, on_bad_row="skip", image_folder=str(pictures))
    assert (len(opened), opened.num_bad_rows) == (2, 1)
    assert [opened[i].number for i in range(2)] == [1, 3]
    assert json.loads(Path(path).read_text())[1] == rows[1]
