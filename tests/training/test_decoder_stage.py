"""Text rows: conversations with words for patches, and captions as in stage 1."""

import pytest

from hyperllava_hf.evaluation.digit_questions import describe_scene
from hyperllava_hf.training.decoder_stage import build_text_collator
from hyperllava_hf.training.digits_model import build_digits_processor
from hyperllava_hf.training.scene_conversations import sample_training_scene, word_patches

SEEDS = list(range(24))


@pytest.fixture(scope="module")
def processor():
    return build_digits_processor()


def test_rows_are_conversations_or_captions_and_supervise_answers(processor) -> None:
    tokenizer = processor.tokenizer
    batch = build_text_collator(processor, 2)(SEEDS)
    captions = 0
    for row, seed in enumerate(SEEDS):
        scene = sample_training_scene(seed)
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        text = tokenizer.decode(ids[batch["attention_mask"][row] == 1])
        answers = tokenizer.decode(labels[labels != -100])
        if text.startswith("<s>A chat between"):
            assert f"USER:{word_patches(scene)}\n" in text
            assert answers.count("</s>") == 2
        else:
            captions += 1
            assert text == f"<s>{word_patches(scene)}{describe_scene(scene)}\n"
            assert answers == f"{describe_scene(scene)}\n"
    assert 0 < captions < len(SEEDS) / 2


def test_image_token_never_appears_in_text_rows(processor) -> None:
    batch = build_text_collator(processor, 1)(SEEDS)
    assert not (batch["input_ids"] == processor.image_token_id).any()
    lengths = batch["attention_mask"].sum(1)
    assert lengths.max() == batch["input_ids"].shape[1]
