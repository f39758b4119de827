"""Conversations about digit scenes, as the three stages that train the decoder read them.

A training scene is repetitive more often than chance would have it, and asks for what is there as
often as for what is not, so that counts and presence are balanced. One conversation puts many
questions to one image, which spreads the cost of the image over them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from ..evaluation.digit_questions import (
    LOOK_ALIKES,
    NUM_PHRASINGS,
    Fact,
    describe_scene,
    list_facts,
    word_fact,
)
from ..evaluation.digit_scenes import (
    INKS,
    PLACES,
    Description,
    get_ink_name,
    get_samples_by_digit,
    sample_scene,
)

MAX_DISTINCT_WHEN_REPETITIVE = 2
Message = dict[str, Any]


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def sample_training_scene(seed: int, split: str = "train") -> Description:
    """Sample a scene, repetitive in its digits or its inks in half of the cases.

    Args:
        seed: Any integer.
        split: The split whose handwriting is used.

    Returns:
        The description.
    """
    rng = random.Random(f"scene {seed}")
    num_digits = rng.randint(1, len(PLACES))
    digits = inks = None
    kind = rng.random()
    if kind < 0.35:
        classes = sorted(get_samples_by_digit(split))
        pool = rng.sample(classes, rng.randint(1, MAX_DISTINCT_WHEN_REPETITIVE))
        digits = [rng.choice(pool) for _ in range(num_digits)]
    if 0.2 < kind < 0.5:
        names = rng.sample(list(INKS), rng.randint(1, MAX_DISTINCT_WHEN_REPETITIVE))
        inks = [rng.choice(names) for _ in range(num_digits)]
    return sample_scene(seed, split, num_digits, digits, inks)


def sample_crowded_scene(seed: int, split: str = "train") -> Description:
    """Sample a scene that mostly holds several different digits in different inks.

    Args:
        seed: Any integer.
        split: The split whose handwriting is used.

    Returns:
        The description.
    """
    rng = random.Random(f"scene {seed}")
    num_digits = rng.choices(range(1, 5), (1, 3, 4, 6))[0]
    digits = inks = None
    kind = rng.random()
    if kind < 0.2:
        pool = rng.sample(range(10), 2)
        digits = [rng.choice(pool) for _ in range(num_digits)]
    if 0.12 < kind < 0.3:
        names = rng.sample(list(INKS), 2)
        inks = [rng.choice(names) for _ in range(num_digits)]
    return sample_scene(seed, split, num_digits, digits, inks)


def sample_any_scene(seed: int, split: str = "train") -> Description:
    """Sample a scene as one of the other two samplers does, in turn.

    Args:
        seed: Any integer.
        split: The split whose handwriting is used.

    Returns:
        The description.
    """
    return (sample_training_scene if seed % 2 else sample_crowded_scene)(seed, split)


class Mix(NamedTuple):
    """What conversations are about: a sampler of scenes, and how often a turn asks each form."""

    sample_scene: Callable[[int, str], Description]
    form_weights: dict[str, float]


# Every family, on scenes of any number of digits.
BROAD = Mix(
    sample_training_scene,
    {
        "reading": 4.0,
        "colour": 3.0,
        "counting_all": 1.0,
        "counting_ink": 2.5,
        "counting_digit": 4.0,
        "presence": 4.0,
        "description": 1.5,
    },
)
# What ties a digit to its place and its ink: the last to be learnt, and least asked for in BROAD,
# where many scenes hold one digit or one ink.
BINDING = Mix(
    sample_crowded_scene,
    {
        "reading": 6.0,
        "colour": 6.0,
        "counting_all": 0.2,
        "counting_ink": 0.7,
        "counting_digit": 1.0,
        "presence": 1.0,
        "description": 1.0,
    },
)
# The remaining weaknesses after BINDING: whole descriptions, and counts that it asks for rarely.
CROWDED = Mix(
    sample_crowded_scene,
    {
        "reading": 4.0,
        "colour": 2.0,
        "counting_all": 0.7,
        "counting_ink": 3.0,
        "counting_digit": 2.5,
        "presence": 2.0,
        "description": 5.0,
    },
)
# The forms that were last on validation: places, and counts of an ink.
FINISH = Mix(
    sample_any_scene,
    {
        "reading": 8.0,
        "colour": 1.5,
        "counting_all": 0.5,
        "counting_ink": 6.0,
        "counting_digit": 2.0,
        "presence": 1.5,
        "description": 1.5,
    },
)
# Places above all: left and right in the bottom row were the last to be told apart.
PLACES_MIX = Mix(
    sample_crowded_scene,
    {
        "reading": 16.0,
        "colour": 1.0,
        "counting_all": 0.3,
        "counting_ink": 4.0,
        "counting_digit": 1.0,
        "presence": 1.0,
        "description": 1.0,
    },
)
# Counts above all, on scenes whose inks and digits repeat: large counts were the last to be right.
COUNTS = Mix(
    sample_training_scene,
    {
        "reading": 3.0,
        "colour": 1.0,
        "counting_all": 0.5,
        "counting_ink": 10.0,
        "counting_digit": 5.0,
        "presence": 1.0,
        "description": 1.5,
    },
)


def sample_turns(seed: int, scene: Description, num_turns: int, mix: Mix = BROAD) -> list[Turn]:
    """Sample different questions about a scene, each in one of its five training phrasings.

    Args:
        seed: Any integer.
        scene: The scene.
        num_turns: How many.
        mix: How often each form is asked for.

    Returns:
        The turns, in random order.
    """
    rng = random.Random(f"turns {seed}")
    by_form: dict[str, list[Fact]] = {form: [] for form in mix.form_weights}
    for fact in list_facts(scene):
        by_form[fact.form].append(fact)
    turns = []
    for _ in range(num_turns):
        forms = [form for form, facts in by_form.items() if facts]
        form = rng.choices(forms, [mix.form_weights[form] for form in forms])[0]
        fact = _choose_fact(rng, scene, by_form[form])
        by_form[form].remove(fact)
        question = word_fact(fact, rng.randrange(NUM_PHRASINGS))
        turns.append(Turn(question.question, question.answer))
    return turns


def _choose_fact(rng: random.Random, scene: Description, facts: list[Fact]) -> Fact:
    """Choose what is there and what is not with equal odds, look-alikes half of the latter."""
    absent = [fact for fact in facts if fact.answer in ("0", "No")]
    present = [fact for fact in facts if fact.answer not in ("0", "No")]
    if not absent or (present and rng.random() < 0.5):
        return rng.choice(present)
    digits = {entry["digit"] for entry in scene["digits"]}
    similar = {str(LOOK_ALIKES[digit]) for digit in digits if digit in LOOK_ALIKES}
    confusing = [fact for fact in absent if fact.subject in similar]
    return rng.choice(confusing if confusing and rng.random() < 0.5 else absent)


def word_patches(scene: Description) -> str:
    """Say in words what the patches of an image would show, one word a patch.

    An image is 4 x 4 patches and a cell is 2 x 2 of them: on the left its ink, on the right its
    digit, each twice; both are "none" where the cell is empty.

    Args:
        scene: The scene.

    Returns:
        Sixteen words in reading order, each with a space before it, such as " red 3 none none"
        for a row of patches.
    """
    cells = dict.fromkeys(PLACES, " none none")
    for entry in scene["digits"]:
        cells[entry["place"]] = f" {get_ink_name(entry['ink'])} {entry['digit']}"
    upper, lower = (cells[PLACES[i]] + cells[PLACES[i + 1]] for i in (0, 2))
    return upper * 2 + lower * 2


def build_text_turns(seed: int, scene: Description, num_turns: int) -> list[Turn]:
    """Build a conversation in which words stand where the image's patches would stand.

    Args:
        seed: Any integer.
        scene: The scene.
        num_turns: How many questions, at most.

    Returns:
        The turns of `sample_turns`, the first of them below the words.
    """
    turns = sample_turns(seed, scene, num_turns)
    turns[0] = Turn(f"{word_patches(scene).strip()}\n{turns[0].question}", turns[0].answer)
    return turns


def build_messages(turns: list[Turn], with_image: bool) -> list[Message]:
    """Put turns into the chat form that the processor and the tokenizer's template read.

    Args:
        turns: Questions and answers.
        with_image: Whether an image precedes the first question.

    Returns:
        Messages of alternating roles; contents are lists of typed parts.
    """
    messages = []
    for i, turn in enumerate(turns):
        content: list[dict[str, str]] = [{"type": "text", "text": turn.question}]
        if with_image and i == 0:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": turn.answer}]
        messages.append({"role": "assistant", "content": answer})
    return messages


def build_caption(scene: Description) -> list[Message]:
    """Build the alignment stage's row: an image and its description.

    Args:
        scene: The scene.

    Returns:
        A user message that holds the image alone, and the description as the answer.
    """
    return [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": describe_scene(scene)}]},
    ]
