"""Conversations: right answers, no question twice, balance, and words in place of patches."""

from collections import Counter

from hyperllava_hf.evaluation.digit_questions import describe_scene, list_questions
from hyperllava_hf.evaluation.digit_scenes import SPLITS
from hyperllava_hf.training.scene_conversations import (
    build_caption,
    build_messages,
    build_text_turns,
    sample_training_scene,
    sample_turns,
    word_patches,
)

SEEDS = range(150)


def test_turns_are_questions_of_the_scene_and_none_comes_twice() -> None:
    for seed in SEEDS:
        scene = sample_training_scene(seed)
        assert {entry["sample"] for entry in scene["digits"]} <= set(SPLITS["train"])
        known = {(q.question, q.answer) for i in range(5) for q in list_questions(scene, i)}
        turns = sample_turns(seed, scene, 8)
        assert len(turns) == len(set(turns)) == 8
        assert set(turns) <= known
        assert turns == sample_turns(seed, scene, 8)


def test_first_turns_ask_for_what_is_there_as_often_as_not() -> None:
    answers = Counter(
        sample_turns(seed, sample_training_scene(seed), 1)[0].answer for seed in range(3000)
    )
    assert 0.7 < answers["Yes"] / answers["No"] < 1.4


def test_training_scenes_repeat_digits_and_inks() -> None:
    scenes = [sample_training_scene(seed) for seed in range(1000)]
    most = [max(Counter(e["digit"] for e in scene["digits"]).values()) for scene in scenes]
    assert sum(count >= 3 for count in most) > 80


def test_words_stand_where_patches_stand() -> None:
    scene = {
        "digits": [
            {"digit": 3, "place": "top left", "ink": "red"},
            {"digit": 7, "place": "bottom right", "ink": "blue"},
        ]
    }
    rows = [" red 3 none none"] * 2 + [" none none blue 7"] * 2
    assert word_patches(scene) == "".join(rows)


def test_text_conversation_begins_with_the_words() -> None:
    scene = sample_training_scene(5)
    turns = build_text_turns(5, scene, 3)
    words, question = turns[0].question.split("\n")
    assert words == word_patches(scene).strip()
    assert question == sample_turns(5, scene, 3)[0].question
    assert turns[1:] == sample_turns(5, scene, 3)[1:]


def test_messages_hold_the_image_once_and_first() -> None:
    scene = sample_training_scene(1)
    messages = build_messages(sample_turns(1, scene, 2), with_image=True)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    kinds = [[part["type"] for part in message["content"]] for message in messages]
    assert kinds == [["image", "text"], ["text"], ["text"], ["text"]]
    caption = build_caption(scene)
    assert caption[0]["content"] == [{"type": "image"}]
    assert caption[1]["content"][0]["text"] == describe_scene(scene)
