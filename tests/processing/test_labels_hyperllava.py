"""Labels and guidance, to the token."""

import pytest

from hyperllava_hf.processing.labels_hyperllava import (
    assistant_token_mask,
    build_labels,
    count_prompt_tokens,
)
from tests.processing.builders import (
    TOKENIZERS,
    answer,
    ask,
    build_image,
    build_small_processor,
    escape,
)

SYSTEM = {"role": "system", "content": "Be brief."}
IMAGE = build_image()
CALL = {"tokenize": True, "return_dict": True}
# <s> Be _brief . _USER : _ <image>x4 \n What ? _ASSISTANT : | _red _7 </s> |
FIRST = [1, 3, 4, 5, 6, 8, 9, 25, 25, 25, 25, 10, 11, 12, 13, 8]
ANSWER = [14, 15, 2]
# USER : _Why ? _ASSISTANT : | _so </s> |
SECOND = [7, 8, 16, 12, 13, 8]
LAST = [17, 2]
CONVERSATION = [SYSTEM, ask("What?", IMAGE), answer("red 7"), ask("Why?"), answer("so")]


def nothing(ids: list[int]) -> list[int]:
    return [-100] * len(ids)


def test_ids_labels_and_guidance_of_two_turns(processor):
    found = processor.apply_chat_template(CONVERSATION, return_labels=True, **CALL)
    assert found["input_ids"] == [FIRST + ANSWER + SECOND + LAST]
    assert found["labels"] == [nothing(FIRST) + ANSWER + nothing(SECOND) + LAST]
    assert found["guidance_mask"] == [[1] * 16 + [0] * 11]
    assert found["attention_mask"] == [[1] * 27]
    assert set(found) == {"input_ids", "attention_mask", "labels", "guidance_mask", "pixel_values"}


def test_first_prompt_is_what_generate_sees(processor):
    found = processor.apply_chat_template(CONVERSATION[:2], add_generation_prompt=True, **CALL)
    assert found["input_ids"] == [FIRST]
    assert "guidance_mask" not in found
    assert "labels" not in found


def test_history_has_the_tokens_that_were_generated(processor):
    history = processor.apply_chat_template(CONVERSATION[:4], add_generation_prompt=True, **CALL)
    assert history["input_ids"] == [FIRST + ANSWER + SECOND]
    assert history["guidance_mask"] == [[1] * 16 + [0] * 9]


def test_batch_with_and_without_images_and_answers_pads_right_with_labels(processor):
    batch = [CONVERSATION[:3], [SYSTEM, ask("Why?")], [SYSTEM, ask("Why?"), answer("so")]]
    found = processor.apply_chat_template(
        batch, return_labels=True, padding=True, return_tensors="pt", **CALL
    )
    # <s> Be _brief . _USER : _Why ?
    short = [1, 3, 4, 5, 6, 8, 16, 12]
    assert found["input_ids"].tolist() == [
        FIRST + ANSWER,
        short + [26] * 11,
        [*short, 13, 8, 17, 2] + [26] * 7,
    ]
    assert found["labels"].tolist() == [
        nothing(FIRST) + ANSWER,
        [-100] * 19,
        [-100] * 10 + LAST + [-100] * 7,
    ]
    assert found["guidance_mask"].tolist() == [
        [1] * 16 + [0] * 3,
        [1] * 8 + [0] * 11,
        [1] * 10 + [0] * 9,
    ]
    assert found["attention_mask"].tolist() == [[1] * 19, [1] * 8 + [0] * 11, [1] * 12 + [0] * 7]
    assert found["pixel_values"].shape == (1, 3, 28, 28)


def test_batch_without_labels_pads_left(processor):
    batch = [CONVERSATION[:3], [SYSTEM, ask("Why?")]]
    found = processor.apply_chat_template(batch, padding=True, return_tensors="pt", **CALL)
    assert found["input_ids"].tolist()[1] == [26] * 11 + [1, 3, 4, 5, 6, 8, 16, 12]
    assert found["guidance_mask"].tolist()[1] == [0] * 11 + [1] * 8
    left = processor.apply_chat_template(
        batch, padding=True, padding_side="left", return_labels=True, **CALL
    )
    assert left["labels"] == [nothing(FIRST) + ANSWER, [-100] * 19]


def test_plain_supervises_caption_and_line_break(processor):
    conversation = [ask("", IMAGE), answer("A red 7")]
    found = processor.apply_chat_template(
        conversation, chat_template="plain", return_labels=True, **CALL
    )
    assert found["input_ids"] == [[1, 25, 25, 25, 25, 22, 14, 15, 10]]
    assert found["labels"] == [[-100] * 5 + [22, 14, 15, 10]]
    assert found["guidance_mask"] == [[1] * 5 + [0] * 4]


def test_empty_answer_is_the_end_mark_alone(processor):
    found = processor.apply_chat_template(
        [SYSTEM, ask("Why?"), answer("")], return_labels=True, **CALL
    )
    assert found["input_ids"][0][-3:] == [13, 8, 2]
    assert found["labels"][0][-3:] == [-100, -100, 2]
    assert found["guidance_mask"][0][-3:] == [1, 1, 0]


def test_open_final_answer_is_supervised_without_an_end_mark(processor):
    found = processor.apply_chat_template(
        [SYSTEM, ask("Why?"), answer("red 7")],
        continue_final_message=True,
        return_labels=True,
        **CALL,
    )
    assert found["labels"][0][-3:] == [-100, 14, 15]
    assert found["guidance_mask"][0][-3:] == [1, 0, 0]


def test_assistant_masks_are_the_positions_of_the_labels(processor):
    found = processor.apply_chat_template(
        CONVERSATION, return_labels=True, return_assistant_tokens_mask=True, **CALL
    )
    said = [int(label != -100) for label in found["labels"][0]]
    assert found["assistant_masks"] == [said]


def test_an_answer_that_spells_the_mark_is_never_supervised_as_an_image(processor):
    conversation = [SYSTEM, ask("What?"), {"role": "assistant", "content": "red <image>"}]
    found = processor.apply_chat_template(conversation, images=IMAGE, return_labels=True, **CALL)
    assert [label for label in found["labels"][0] if label != -100] == [14, 9, 2]


QUESTIONS = ["Why?", "What is it?\n", "\u00e9t\u00e9 \U0001f600 </s> x", " "]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("reply", ["the A", "7", "", " \u00e9!", "\nA"])
def test_prompt_generation_and_history_agree_for_every_kind_of_tokenizer(kind, question, reply):
    processor = build_small_processor(kind)
    conversation = [ask(question, IMAGE), answer(reply), ask("So?"), answer("A the")]
    found = processor.apply_chat_template(conversation, return_labels=True, **CALL)
    ids, labels = found["input_ids"][0], found["labels"][0]
    prompt = processor.apply_chat_template(conversation[:1], add_generation_prompt=True, **CALL)
    masked = [token for token, on in zip(ids, found["guidance_mask"][0], strict=True) if on]
    assert masked == prompt["input_ids"][0] == ids[: len(masked)]
    later = processor.apply_chat_template(conversation[:3], add_generation_prompt=True, **CALL)
    length = len(later["input_ids"][0])
    assert later["input_ids"][0] == ids[:length]
    assert labels[length:] == ids[length:]
    assert set(labels[: len(masked)]) == {-100}
    said = [token for token in labels if token != -100]
    assert said.count(processor.tokenizer.eos_token_id) == 2
    # What is generated after the prompt, read back from its text, has the same ids again.
    generated = [token for token in labels[:length] if token != -100]
    text = processor.decode(generated, skip_special_tokens=True)
    if processor.tokenizer.unk_token_id not in generated:
        again = [conversation[0], answer(text), *conversation[2:]]
        repeated = processor.apply_chat_template(again, return_labels=True, **CALL)
        assert repeated["input_ids"] == found["input_ids"]


def test_masks_from_offsets():
    offsets = [(0, 0), (0, 4), (4, 5), (5, 7), (7, 11), (11, 12), (12, 14), (0, 0)]
    assert assistant_token_mask(offsets, [(5, 11), (12, 14)], "x") == [0, 0, 0, 1, 1, 0, 1, 0]
    assert assistant_token_mask(offsets, [], "x") == [0] * 8
    assert count_prompt_tokens(offsets, 5, "x") == 3
    assert count_prompt_tokens(offsets, None, "x") == 8
    assert count_prompt_tokens(offsets, 99, "x") == 8
    # ByteLevel leaves the space at 4 out of the token that carries it.
    assert count_prompt_tokens([(0, 4), (5, 7)], 4, "x") == 1
    assert build_labels([5, 6, 7], [0, 1, 1], {7}) == [-100, 6, -100]


@pytest.mark.parametrize("function", [assistant_token_mask, count_prompt_tokens])
def test_an_answer_inside_a_token_is_refused(function):
    boundary = [(5, 9)] if function is assistant_token_mask else 5
    with pytest.raises(
        ValueError,
        match=escape("sample 3: token 1", "4 to 7", "at 5", "boundary", "Use a tokenizer"),
    ):
        function([(0, 4), (4, 7)], boundary, "sample 3")


def test_templates_without_markers(processor):
    source = (
        "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else ' ASSISTANT:' }}"
        "{% if m.role != 'user' %} {% endif %}{{ m.content[-1].text }}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    conversation = [ask("Why?"), answer("red")]
    found = processor.apply_chat_template(conversation, chat_template=source, **CALL)
    prompt = processor.apply_chat_template(
        conversation[:1], chat_template=source, add_generation_prompt=True, **CALL
    )
    count = len(prompt["input_ids"][0])
    assert found["guidance_mask"] == [[1] * count + [0]]
    for option in ("return_labels", "return_assistant_tokens_mask"):
        with pytest.raises(ValueError, match=escape("{% generation %}", "vicuna_v1")):
            processor.apply_chat_template(
                conversation, chat_template=source, **CALL, **{option: True}
            )
    with pytest.raises(ValueError, match=escape("first prompt differently", "{% generation %}")):
        processor.apply_chat_template(conversation, chat_template="{{ messages | length }}", **CALL)
