"""The processor as a whole: counting, matching images to prompts, lengths, arguments."""

import base64
import copy
import pickle
import time

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from hyperllava_hf.processing import (
    HyperLlavaImageProcessor,
    HyperLlavaProcessor,
    build_processor,
    call_arguments_hyperllava,
    conversation_calls_hyperllava,
)
from tests.processing.builders import (
    answer,
    ask,
    build_byte_level_tokenizer,
    build_image,
    build_small_processor,
    build_word_tokenizer,
    escape,
)

RED, TALL, WIDE = build_image(), build_image(9, 40, seed=1), build_image(41, 8, seed=2)
MARK = 25


def count_marks(outputs) -> list[int]:
    return [list(row).count(MARK) for row in outputs["input_ids"]]


@pytest.mark.parametrize(
    ("strategy", "additional", "count"),
    [("default", 1, 576), ("full", 1, 577), ("default", 0, 575), ("full", 0, 576)],
)
def test_an_image_takes_the_positions_that_the_tower_gives(strategy, additional, count):
    processor = build_processor(
        build_word_tokenizer(),
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=additional,
    )
    found = processor(images=RED, text="<image>", return_tensors="pt")
    assert (found["input_ids"] == MARK).sum() == count
    assert processor.image_seq_length == count
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(3, 4), (5, 6)])
    assert sizes["num_image_tokens"] == [count, count]
    assert sizes["num_image_patches"] == [1, 1]
    assert processor.replace_image_token(found, 0) == "<image>" * count
    assert processor._get_num_multimodal_tokens().num_image_tokens is None
    half = processor._get_num_multimodal_tokens(image_sizes=[(3, 4)], size=168)
    assert half["num_image_tokens"] == [count - 576 + 144]


def test_count_follows_a_size_given_with_the_call(processor):
    found = processor(images=RED, text="<image>", size=42, return_tensors="np")
    assert count_marks(found) == [9]
    assert found["pixel_values"].shape == (1, 3, 42, 42)


PROMPTS = ["<image>What?", "Why?", "<image><image>Why?"]
NESTINGS = {
    "nested": [[RED], [], [TALL, WIDE]],
    "nested with none": [[RED], None, (TALL, WIDE)],
    "flat": [RED, TALL, WIDE],
    "tuple": (RED, TALL, WIDE),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_images_find_their_prompts(processor, nesting):
    found = processor(images=NESTINGS[nesting], text=PROMPTS, padding=True, return_tensors="pt")
    assert count_marks(found) == [4, 0, 8]
    for index, image in enumerate([RED, TALL, WIDE]):
        alone = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(found["pixel_values"][index], alone)


def test_a_row_is_the_same_alone_and_in_a_batch(processor):
    together = processor(images=NESTINGS["nested"], text=PROMPTS, padding=True)
    for index, (prompt, images) in enumerate(zip(PROMPTS, NESTINGS["nested"], strict=True)):
        alone = processor(images=images or None, text=prompt)
        ids, mask = together["input_ids"][index], together["attention_mask"][index]
        kept = [token for token, on in zip(ids, mask, strict=True) if on]
        assert kept == alone["input_ids"][0]
        assert ("pixel_values" in alone) == bool(images)


def test_text_alone_and_images_alone(processor):
    text = processor(text=["Why?", "What?"], return_tensors="pt")
    assert set(text) == {"input_ids", "attention_mask"}
    images = processor(images=[RED, [TALL]], return_tensors="pt")
    assert set(images) == {"pixel_values"}
    assert images["pixel_values"].shape == (2, 3, 28, 28)


def test_an_image_may_come_in_any_form_inside_a_conversation(processor, tmp_path):
    path = tmp_path / "scene.png"
    RED.save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    expected = processor.image_processor(RED, return_tensors="pt")["pixel_values"]
    parts = [
        {"type": "image", "image": RED},
        {"type": "image", "image": np.asarray(RED)},
        {"type": "image", "image": str(path)},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": str(path)},
        {"type": "image", "base64": text},
        {"type": "image", "bytes": path.read_bytes()},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image_url", "image_url": str(path)},
    ]
    for part in parts:
        conversation = [{"role": "user", "content": [part]}]
        found = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(found["pixel_values"], expected)


def test_images_may_be_passed_beside_a_conversation(processor):
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]
    options = {"tokenize": True, "return_dict": True}
    for images in ([RED, TALL], [[RED, TALL]]):
        found = processor.apply_chat_template(conversation, images=images, **options)
        assert count_marks(found) == [8]
    nested = {"processor_kwargs": {"images": [[RED, TALL], [WIDE]]}}
    batch = [conversation, [ask("<image>What?")]]
    assert count_marks(processor.apply_chat_template(batch, **nested, **options)) == [8, 4]
    with pytest.raises(ValueError, match=escape("both inside the conversation", "expected one")):
        processor.apply_chat_template([ask("What?", RED)], images=[RED], **options)


MISMATCHES = [
    ([RED], "What?", ("the prompt has 0 <image> marks and 1 image", "Add 1 <image>")),
    (None, "<image>What?", ("the prompt has 1 <image> mark and 0 images", "Pass 1 more")),
    ([RED], "<image><image>", ("2 <image> marks and 1 image,", "Pass 1 more")),
    ([[RED], [RED]], ["<image>", "What?"], ("sample 1 has 0 <image> marks and 1 image",)),
    ([[], [RED]], ["<image>", "<image>"], ("sample 0 has 1 <image> mark and 0 images",)),
    ([[RED]], ["<image>", "What?"], ("1 lists of images for 2 prompts", "Use []")),
    (
        [RED, RED, RED],
        ["<image>", "What?"],
        ("3 images for 1 image marks in 2 prompts", "[1, 0]", "one image a mark"),
    ),
]


@pytest.mark.parametrize(("images", "text", "parts"), MISMATCHES)
def test_marks_and_images_that_do_not_match_are_named(processor, images, text, parts):
    with pytest.raises(ValueError, match=escape(*parts)):
        processor(images=images, text=text)


def test_an_unreadable_image_is_named_by_sample_and_place(processor):
    with pytest.raises(ValueError, match=r"sample 1, image 1: there is no file 'missing\.png'"):
        processor(images=[[RED], [TALL, "missing.png"]], text=["<image>", "<image><image>"])
    with pytest.raises(ValueError, match=r"sample 0, image 0: .* no image that Pillow can read"):
        processor.apply_chat_template([ask("What?", b"text")], tokenize=True, return_dict=True)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"text": []}, {"text": 7}, {"text": [["a", "b"]]}, {"text": "a", "videos": [1]}],
)
def test_calls_without_a_prompt_are_refused(processor, arguments):
    with pytest.raises(ValueError, match="expected"):
        processor(**arguments)


def test_prompts_over_the_context_length_are_refused_or_cut(processor):
    processor.tokenizer.model_max_length = 6
    processor(images=RED, text="<image>What")
    with pytest.raises(
        ValueError, match=escape("the prompt has 7 tokens, 4 of them image", "most 6")
    ):
        processor(images=RED, text="<image>What?")
    with pytest.raises(ValueError, match=escape("sample 1 has 7 tokens", "at most 6")):
        processor(text=["Why?", "What? Why so 7 A"])
    cut = processor(images=RED, text="<image>What?", truncation=True)
    assert cut["input_ids"] == [[1, 25, 25, 25, 25, 11]]
    longer = processor(images=RED, text="<image>What?", max_length=7)
    assert len(longer["input_ids"][0]) == 7
    with pytest.raises(ValueError, match=escape("would cut 1 image tokens", "max_length")):
        processor(images=RED, text="<image>What?", truncation=True, max_length=4)
    processor.tokenizer.truncation_side = "left"
    left = processor(text="What? Why so", truncation=True, max_length=3)
    assert left["input_ids"] == [[1, 16, 17]]


def test_cutting_keeps_labels_and_masks_in_step(processor):
    found = processor.apply_chat_template(
        [{"role": "system", "content": "Be"}, ask("Why?"), answer("red 7")],
        tokenize=True,
        return_dict=True,
        return_labels=True,
        truncation=True,
        max_length=9,
    )
    assert found["input_ids"] == [[1, 3, 6, 8, 16, 12, 13, 8, 14]]
    assert found["labels"] == [[-100] * 8 + [14]]
    assert found["guidance_mask"] == [[1] * 8 + [0]]


def test_arguments_of_tokenizers_are_understood(processor):
    found = processor(
        images=[RED],
        text=["<image> red", "A"],
        padding="max_length",
        max_length=8,
        padding_side="right",
        return_tensors="np",
        return_mm_token_type_ids=True,
        return_token_type_ids=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    assert found["input_ids"].tolist() == [[1, 25, 25, 25, 25, 14, 26, 26], [1, 22] + [26] * 6]
    assert found["mm_token_type_ids"].tolist() == [[0, 1, 1, 1, 1, 0, 0, 0], [0] * 8]
    assert found["token_type_ids"].tolist() == [[0] * 8] * 2
    assert found["offset_mapping"][0, 1:7].tolist() == [[0, 7]] * 4 + [[7, 11], [0, 0]]
    assert found["special_tokens_mask"].shape == (2, 8)
    bare = processor(text="A", add_special_tokens=False, return_attention_mask=False)
    assert dict(bare) == {"input_ids": [[22]]}


def test_servers_are_told_what_each_image_mark_became(processor):
    found = processor(
        images=[RED, RED],
        text=["<image> <image>", "A"],
        padding=True,
        return_tensors="pt",
        return_text_replacement_offsets=True,
    )
    same = {"type": "image", "text": "<image>", "replacement": "<image>" * 4}
    first = {**same, "span": (0, 7), "new_span": (0, 28)}
    second = {**same, "span": (8, 15), "new_span": (29, 57)}
    assert found["text_replacement_offsets"] == [[first, second], []]


def test_arguments_may_be_sorted_by_modality(processor):
    found = processor(
        images=RED,
        text=["<image>", "A"],
        text_kwargs={"padding": True, "padding_side": "right"},
        images_kwargs={"size": 14},
        common_kwargs={"return_tensors": "pt"},
    )
    assert found["input_ids"].tolist() == [[1, 25], [1, 22]]
    with pytest.raises(ValueError, match=escape("padding was passed twice", "Remove either")):
        processor(text="A", padding=True, text_kwargs={"padding": False})


def test_arguments_that_nothing_reads_are_said(processor, monkeypatch):
    said = []
    monkeypatch.setattr(call_arguments_hyperllava.logger, "warning_once", said.append)
    processor(text="A", paddding=True, videos_kwargs={})
    assert said == ["HyperLlavaProcessor ignores paddding."]


def test_words_that_a_template_does_not_read_are_said(processor, monkeypatch):
    said = []
    monkeypatch.setattr(conversation_calls_hyperllava.logger, "warning_once", said.append)
    chat = [{"role": "user", "content": "A"}]
    processor.apply_chat_template(chat, chat_template="{{ colour }}", colour="red", return_label=1)
    assert [line.split(" is ")[0] for line in said] == ["apply_chat_template: return_label"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"truncation": "bogus", "max_length": 2}, "truncation: found 'bogus', expected one of"),
        ({"truncation": True, "max_length": 0}, "max_length: found 0, expected an integer"),
        ({"truncation": True, "max_length": "50"}, "max_length: found '50', expected an integer"),
    ],
)
def test_lengths_and_truncations_that_are_none_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(text="A", **arguments)


@pytest.mark.parametrize("extra", ["1", -1, True])
def test_additional_image_tokens_are_a_number(processor, extra):
    parts = (processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match=r"num_additional_image_tokens is .*expected an integer"):
        HyperLlavaProcessor(*parts, patch_size=14, num_additional_image_tokens=extra)


def test_rows_of_different_lengths_need_padding_to_become_tensors(processor):
    with pytest.raises(ValueError, match="padding"):
        processor(text=["A", "Why?"], return_tensors="pt")


def test_a_tokenizer_that_emits_token_type_ids_leaks_none(processor):
    processor.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert set(processor(text="A")) == {"input_ids", "attention_mask"}


def test_padding_side_of_the_tokenizer_is_honoured(processor):
    assert processor.tokenizer.padding_side == "left"
    assert processor(text=["A", "Why?"], padding=True)["input_ids"][0] == [26, 1, 22]
    processor.tokenizer.padding_side = "right"
    assert processor(text=["A", "Why?"], padding=True)["input_ids"][0] == [1, 22, 26]


def test_a_template_that_writes_bos_gets_no_second_one(processor):
    found = processor.apply_chat_template(
        [ask("A")], chat_template="{{ bos_token }}A", tokenize=True
    )
    assert found == [[1, 22]]


def test_control_tokens_are_not_silently_left_unsanitised(processor):
    with pytest.raises(ValueError, match=escape("sanitize_control_tokens", "Remove such text")):
        processor.apply_chat_template([ask("A")], sanitize_control_tokens=True, tokenize=True)


def test_names_for_servers(processor):
    assert processor.model_input_names == [
        "input_ids",
        "attention_mask",
        "pixel_values",
        "guidance_mask",
    ]
    assert processor.image_token == "<image>"
    assert processor.image_token_id == MARK
    assert processor.image_token_ids == [MARK]


def test_decoding(processor):
    rows = torch.tensor([[1, 3, 4, 2], [22, 14, 2, 26]])
    assert processor.batch_decode(rows, skip_special_tokens=True) == ["Be brief", "A red"]
    assert processor.post_process_image_text_to_text(rows) == ["Be brief", "A red"]
    assert processor.decode(rows[0]) == "<s>Be brief</s>"


def test_another_image_token_runs_through():
    processor = build_small_processor(image_token="<img>")
    found = processor.apply_chat_template([ask("What?", RED)], tokenize=True, return_dict=True)
    assert count_marks(found) == [4]
    assert processor.tokenizer.convert_ids_to_tokens(MARK) == "<img>"


FAULTS = [
    ({"patch_size": None}, ("patch_size is None", "patch_size=14")),
    ({"patch_size": 0}, ("patch_size is 0",)),
    ({"vision_feature_select_strategy": "cls"}, ("'cls'", "'default' or 'full'")),
    ({"image_token": "<nope>"}, ("splits the image token '<nope>'", "build_processor")),
    ({"tokenizer": None}, ("the tokenizer is a NoneType", "fast tokenizer")),
    ({"image_processor": CLIPImageProcessor}, ("HyperLlavaImageProcessor", "from_dict")),
]


@pytest.mark.parametrize(("changes", "parts"), FAULTS)
def test_parts_that_do_not_fit_are_refused(processor, changes, parts):
    arguments = {
        "image_processor": processor.image_processor,
        "tokenizer": processor.tokenizer,
        "patch_size": 14,
    }
    with pytest.raises(ValueError, match=escape(*parts)):
        HyperLlavaProcessor(**{**arguments, **changes})


def test_copies_are_equal(processor):
    for copied in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert copied.to_dict() == processor.to_dict()
        assert copied(text="A")["input_ids"] == [[1, 22]]
    assert "patch_size" in repr(processor)


def test_templates_may_be_chosen_by_name_for_good():
    processor = build_small_processor(chat_template="plain")
    assert processor.apply_chat_template([ask("", RED), answer("A")]) == "<image>A\n"


def test_build_processor_adds_only_what_is_missing():
    processor = build_processor(build_byte_level_tokenizer(), image_size=28)
    size = len(processor.tokenizer)
    assert processor.tokenizer.pad_token == "<pad>"
    again = build_processor(processor.tokenizer, image_size=28)
    assert len(again.tokenizer) == size
    assert isinstance(again.image_processor, HyperLlavaImageProcessor)
    own = build_processor(build_word_tokenizer(pad_token="<unk>"))
    assert own.tokenizer.pad_token == "<unk>"


def test_a_conversation_of_ten_turns_is_prepared_quickly(processor):
    conversation = [ask("What? Why so red 7 A", RED)]
    for _ in range(9):
        conversation += [answer("A green 3 and so red"), ask("What? Why so")]
    conversation.append(answer("so"))
    options = {"tokenize": True, "return_dict": True, "return_labels": True}
    times = []
    for _ in range(20):
        start = time.perf_counter()
        processor.apply_chat_template(conversation, **options)
        times.append(time.perf_counter() - start)
    # The median is about 1 ms on one core; the bound leaves room for a busy machine.
    assert sorted(times)[5] < 0.02
