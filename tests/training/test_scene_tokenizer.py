"""The tokenizer: any text survives, scene words are one token, and the special ids are Llama's."""

import pytest
from transformers import AutoTokenizer

from hyperllava_hf.evaluation.digit_questions import HELD_OUT_PHRASINGS, PHRASINGS
from hyperllava_hf.evaluation.digit_scenes import INKS
from hyperllava_hf.training.scene_tokenizer import (
    SYSTEM_SENTENCE,
    VOCAB_SIZE,
    build_scene_tokenizer,
)

TEXTS = [
    "How many 3s are there?",
    "x = 10 * (y - 2)\n\n\tdone",
    "  two  spaces ",
    "Gr\u00fc\u00dfe, \u65e5\u672c, \U0001f999",
    "",
    SYSTEM_SENTENCE,
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_scene_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text


def test_special_ids_are_those_of_llama(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<image>") == len(tokenizer) - 2
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    assert len(tokenizer) <= VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_words_of_scenes_are_single_tokens(tokenizer) -> None:
    words = [*INKS, *"0123456789", "top", "bottom", "left", "right", "none"]
    for word in words:
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


def test_plural_is_the_digit_and_a_letter(tokenizer) -> None:
    ids = tokenizer("How many 3s", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["\u01203", "s"]


def test_phrasings_are_made_of_words_not_of_bytes(tokenizer) -> None:
    for table in (PHRASINGS, HELD_OUT_PHRASINGS):
        for question in (question for choices in table.values() for question in choices):
            text = question.format(place="top left", digit=3, ink="red")
            ids = tokenizer(text, add_special_tokens=False).input_ids
            words = text.replace("3s", "3 s").replace("?", " ?").replace(".", " .").split()
            assert len(ids) == len(words), text


def test_tokenizer_loads_from_its_folder(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{SYSTEM_SENTENCE} USER: <image>\nHow many 3s? ASSISTANT: 2</s>"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.pad_token == "<pad>"
