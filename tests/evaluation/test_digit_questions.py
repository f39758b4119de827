"""Questions: literal answers, an independent re-derivation, balance of what is sampled."""

import re
from collections import Counter

import pytest

from hyperllava_hf.evaluation.digit_questions import (
    FAMILIES,
    FORMS,
    HELD_OUT_PHRASINGS,
    LOOK_ALIKES,
    NUM_HELD_OUT_PHRASINGS,
    NUM_PHRASINGS,
    PHRASINGS,
    describe_scene,
    list_facts,
    list_questions,
    sample_balanced_fact,
    word_fact,
)
from hyperllava_hf.evaluation.digit_scenes import get_ink_name, sample_scene


def entry(digit: int, place: str, ink: str) -> dict:
    return {"sample": 0, "digit": digit, "place": place, "ink": ink, "box": [0, 0, 40, 40]}


SCENE = {
    "seed": 0,
    "paper": [250, 250, 250],
    "digits": [
        entry(3, "top left", "red"),
        entry(7, "top right", "blue"),
        entry(7, "bottom right", "orange"),
    ],
}


def test_questions_of_a_scene() -> None:
    questions = list_questions(SCENE)
    assert questions[:5] == [
        ("reading", "What digit is in the top left?", "3"),
        ("reading", "What digit is in the top right?", "7"),
        ("reading", "What digit is in the bottom right?", "7"),
        ("colour", "What colour is the 3?", "red"),
        ("counting", "How many digits are there?", "3"),
    ]
    assert ("counting", "How many red digits are there?", "1") in questions
    assert ("counting", "How many green digits are there?", "0") in questions
    assert ("counting", "How many 7s are there?", "2") in questions
    assert ("presence", "Is there a 7 in the image?", "Yes") in questions
    assert ("presence", "Is there a 1 in the image?", "No") in questions
    assert questions[-1] == (
        "description",
        "Describe the image.",
        "A red 3 in the top left, a blue 7 in the top right and an orange 7 in the bottom right.",
    )
    assert len(questions) == 3 + 1 + (1 + 6 + 10) + 10 + 1


def test_two_inks_leave_no_answer_to_colour() -> None:
    assert [q for q in list_questions(SCENE) if q.question == "What colour is the 7?"] == []
    same = {**SCENE, "digits": [entry(7, "top left", "red"), entry(7, "top right", "red")]}
    assert ("colour", "What colour is the 7?", "red") in list_questions(same)


@pytest.mark.parametrize(
    ("digits", "sentence"),
    [
        ([entry(3, "top left", "red")], "A red 3 in the top left."),
        ([entry(3, "top left", "orange")], "An orange 3 in the top left."),
        (
            [entry(7, "bottom right", "blue"), entry(3, "top left", "red")],
            "A red 3 in the top left and a blue 7 in the bottom right.",
        ),
    ],
)
def test_description_follows_the_grammar(digits: list[dict], sentence: str) -> None:
    assert describe_scene({**SCENE, "digits": digits}) == sentence


def test_every_form_has_its_phrasings_and_none_is_shared() -> None:
    assert sorted(PHRASINGS) == sorted(form for forms in FORMS.values() for form in forms)
    assert sorted(PHRASINGS) == sorted(HELD_OUT_PHRASINGS)
    assert {len(set(choices)) for choices in PHRASINGS.values()} == {NUM_PHRASINGS} == {5}
    held_out_lengths = {len(set(choices)) for choices in HELD_OUT_PHRASINGS.values()}
    assert held_out_lengths == {NUM_HELD_OUT_PHRASINGS} == {2}
    every = [q for table in (PHRASINGS, HELD_OUT_PHRASINGS) for c in table.values() for q in c]
    assert len(every) == len(set(every))


def answer_from_description(family: str, question: str, scene: dict) -> str:
    """Answer from the sentence that describes the scene, with no code of the package."""
    sentence = describe_scene(scene)
    found = re.findall(r"\b[Aa]n? (\w+) (\d) in the (\w+ \w+)", sentence)
    if family == "reading":
        place = re.search(r"(top|bottom) (left|right)", question).group()
        return next(digit for _, digit, where in found if where == place)
    digit = re.search(r"\d", question)
    if family == "colour":
        return next(ink for ink, shown, _ in found if shown == digit.group())
    if family == "presence":
        return "Yes" if digit.group() in {shown for _, shown, _ in found} else "No"
    if family == "description":
        return sentence
    ink = re.search(r"red|green|blue|orange|purple|black", question)
    if ink:
        return str(sum(shown == ink.group() for shown, _, _ in found))
    if digit:
        return str(sum(shown == digit.group() for _, shown, _ in found))
    return str(len(found))


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_can_be_rederived_in_every_phrasing(held_out: bool) -> None:
    for seed in range(60):
        scene = sample_scene(seed)
        for phrasing in range(NUM_HELD_OUT_PHRASINGS if held_out else NUM_PHRASINGS):
            for family, question, answer in list_questions(scene, phrasing, held_out):
                assert answer_from_description(family, question, scene) == answer, question


def test_unknown_phrasing_is_refused() -> None:
    fact = list_facts(SCENE)[0]
    with pytest.raises(ValueError, match="found phrasing 5 of reading, expected 0 to 4"):
        word_fact(fact, 5)
    with pytest.raises(ValueError, match="found phrasing 2 of reading, expected 0 to 1"):
        word_fact(fact, 2, held_out=True)
    with pytest.raises(ValueError, match="found form 'size', expected one of reading"):
        sample_balanced_fact(0, "train", "size")


@pytest.mark.parametrize("form", list(PHRASINGS))
def test_sampled_facts_are_facts_of_their_scene(form: str) -> None:
    for seed in range(200):
        scene, fact = sample_balanced_fact(seed, "validation", form)
        assert fact in list_facts(scene)
        assert (scene, fact) == sample_balanced_fact(seed, "validation", form)


@pytest.mark.parametrize("form", ["counting_ink", "counting_digit", "presence"])
def test_sampled_answers_are_balanced(form: str) -> None:
    num_facts = 1500
    facts = [sample_balanced_fact(seed, "train", form) for seed in range(num_facts)]
    counts = Counter(fact.answer for _, fact in facts)
    expected = {"Yes", "No"} if form == "presence" else {"0", "1", "2", "3", "4"}
    assert set(counts) == expected
    share = num_facts / len(expected)
    assert all(0.85 * share < count < 1.15 * share for count in counts.values())


def test_half_of_the_absent_digits_look_like_one_that_is_there() -> None:
    facts = [sample_balanced_fact(seed, "train", "presence") for seed in range(2000)]
    absent = [(scene, int(fact.subject)) for scene, fact in facts if fact.answer == "No"]
    alike = sum(
        any(LOOK_ALIKES.get(entry["digit"]) == digit for entry in scene["digits"])
        for scene, digit in absent
    )
    # Uniform absent digits are look-alikes too at times: half, and about a quarter of the rest.
    assert 0.52 < alike / len(absent) < 0.75
    assert {LOOK_ALIKES[LOOK_ALIKES[digit]] == digit for digit in LOOK_ALIKES} == {True}


def test_families_are_in_the_order_of_the_definition() -> None:
    assert FAMILIES == ("reading", "colour", "counting", "presence", "description")
    assert get_ink_name("red") == "red"
