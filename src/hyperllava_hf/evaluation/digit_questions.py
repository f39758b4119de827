"""Questions about digit scenes, with the one answer that each scene gives.

A scene yields facts; a fact is worded by one of the phrasings of its form. There are five families
of questions; counting has three forms, the other families one each. Five phrasings a form are for
training, and two are held out, to be reported apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from .digit_scenes import INKS, PLACES, Description, get_ink_name, sample_scene

FAMILIES = ("reading", "colour", "counting", "presence", "description")
FORMS = {
    "reading": ("reading",),
    "colour": ("colour",),
    "counting": ("counting_all", "counting_ink", "counting_digit"),
    "presence": ("presence",),
    "description": ("description",),
}
NUM_PHRASINGS = 5
NUM_HELD_OUT_PHRASINGS = 2
LOOK_ALIKES = {3: 8, 8: 3, 1: 7, 7: 1, 4: 9, 9: 4, 5: 6, 6: 5}

PHRASINGS = {
    "reading": (
        "What digit is in the {place}?",
        "Which digit is in the {place}?",
        "What number is written in the {place}?",
        "Read the digit in the {place}.",
        "Which digit do you see in the {place}?",
    ),
    "colour": (
        "What colour is the {digit}?",
        "Which colour is the {digit}?",
        "What is the colour of the {digit}?",
        "In which colour is the {digit} written?",
        "Name the colour of the {digit}.",
    ),
    "counting_all": (
        "How many digits are there?",
        "How many digits are in the image?",
        "How many digits do you see?",
        "Count the digits.",
        "What is the number of digits?",
    ),
    "counting_ink": (
        "How many {ink} digits are there?",
        "How many {ink} digits are in the image?",
        "How many {ink} digits do you see?",
        "Count the {ink} digits.",
        "What is the number of {ink} digits?",
    ),
    "counting_digit": (
        "How many {digit}s are there?",
        "How many {digit}s are in the image?",
        "How many {digit}s do you see?",
        "Count the {digit}s.",
        "What is the number of {digit}s?",
    ),
    "presence": (
        "Is there a {digit} in the image?",
        "Is there a {digit}?",
        "Do you see a {digit}?",
        "Does the image show a {digit}?",
        "Can you see a {digit} in the image?",
    ),
    "description": (
        "Describe the image.",
        "What is in the image?",
        "What do you see in the image?",
        "Give a description of the image.",
        "What does the image show?",
    ),
}
HELD_OUT_PHRASINGS = {
    "reading": (
        "Which number is in the {place}?",
        "What is the digit written in the {place}?",
    ),
    "colour": (
        "Which is the colour of the {digit}?",
        "In which colour is the {digit}?",
    ),
    "counting_all": (
        "How many digits does the image show?",
        "Count the digits in the image.",
    ),
    "counting_ink": (
        "How many {ink} digits does the image show?",
        "Count the {ink} digits in the image.",
    ),
    "counting_digit": (
        "How many {digit}s does the image show?",
        "Count the {digit}s in the image.",
    ),
    "presence": (
        "Do you see a {digit} in the image?",
        "Can you see a {digit}?",
    ),
    "description": (
        "Describe the digits in the image.",
        "Give a description of the digits.",
    ),
}


class Question(NamedTuple):
    """One question about a scene, with its answer."""

    family: str
    question: str
    answer: str


class Fact(NamedTuple):
    """What a question asks for, before it is worded.

    Attributes:
        form: A key of `PHRASINGS`.
        subject: The place, digit or ink that is asked about; empty where the form has none.
        answer: The one answer that the scene gives.
    """

    form: str
    subject: str
    answer: str


def get_family(form: str) -> str:
    """Give the family that a form belongs to.

    Args:
        form: A key of `PHRASINGS`.

    Returns:
        One of `FAMILIES`.
    """
    return form.split("_")[0]


def describe_scene(description: Description) -> str:
    """Say what a scene shows: every digit in reading order, in a fixed grammar.

    Args:
        description: A scene with at least one digit.

    Returns:
        A sentence such as "A red 3 in the top left and a blue 7 in the bottom right."
    """
    parts = []
    for entry in sorted(description["digits"], key=lambda entry: PLACES.index(entry["place"])):
        ink = get_ink_name(entry["ink"])
        article = "an" if ink[0] in "aeiou" else "a"
        parts.append(f"{article} {ink} {entry['digit']} in the {entry['place']}")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{listed[0].upper()}{listed[1:]}."


def list_facts(description: Description) -> list[Fact]:
    """List everything that can be asked about a scene with one answer.

    Args:
        description: A scene.

    Returns:
        The facts: reading for each filled place, colour for each digit whose copies share an
        ink, counts of all digits, of each ink and of each digit, presence of each digit, and the
        description.
    """
    inks_of: dict[int, list[str]] = {}
    entries = sorted(description["digits"], key=lambda entry: PLACES.index(entry["place"]))
    for entry in entries:
        inks_of.setdefault(entry["digit"], []).append(get_ink_name(entry["ink"]))
    all_inks = [ink for inks in inks_of.values() for ink in inks]

    facts = [Fact("reading", entry["place"], str(entry["digit"])) for entry in entries]
    for digit, inks in inks_of.items():
        if len(set(inks)) == 1:
            facts.append(Fact("colour", str(digit), inks[0]))
    facts.append(Fact("counting_all", "", str(len(entries))))
    facts += [Fact("counting_ink", ink, str(all_inks.count(ink))) for ink in INKS]
    facts += [Fact("counting_digit", str(d), str(len(inks_of.get(d, [])))) for d in range(10)]
    facts += [Fact("presence", str(d), "Yes" if d in inks_of else "No") for d in range(10)]
    facts.append(Fact("description", "", describe_scene(description)))
    return facts


def word_fact(fact: Fact, phrasing: int = 0, held_out: bool = False) -> Question:
    """Word a fact as a question.

    Args:
        fact: The fact.
        phrasing: Which phrasing, 0 to 4, or 0 to 1 of the held-out ones. 0 is the design's own.
        held_out: Take a phrasing that training never shows.

    Returns:
        The (family, question, answer) triple.

    Raises:
        ValueError: If there is no such phrasing.
    """
    choices = (HELD_OUT_PHRASINGS if held_out else PHRASINGS)[fact.form]
    if not 0 <= phrasing < len(choices):
        raise ValueError(
            f"found phrasing {phrasing} of {fact.form}, expected 0 to {len(choices) - 1}"
        )
    place = digit = ink = fact.subject
    question = choices[phrasing].format(place=place, digit=digit, ink=ink)
    return Question(get_family(fact.form), question, fact.answer)


def list_questions(
    description: Description, phrasing: int = 0, held_out: bool = False
) -> list[Question]:
    """List the (family, question, answer) triples of a scene.

    Args:
        description: A scene.
        phrasing: Which phrasing of each form, 0 to 4, or 0 to 1 of the held-out ones.
        held_out: Take phrasings that training never shows.

    Returns:
        One triple for each fact of `list_facts`, in its order.
    """
    return [word_fact(fact, phrasing, held_out) for fact in list_facts(description)]


def sample_balanced_fact(seed: int, split: str, form: str) -> tuple[Description, Fact]:
    """Sample a scene and one question about it, answers balanced.

    Counts are uniform over what is possible (1 to 4 digits in all; 0 to 4 of an ink or a digit).
    A digit is present in half of the presence questions; an absent one is in half of the cases
    uniform, in half the look-alike of a digit in the scene. Places and inks are uniform.

    Args:
        seed: Any integer.
        split: The split whose handwriting is used.
        form: A key of `PHRASINGS`.

    Returns:
        The scene and the fact.

    Raises:
        ValueError: If there is no such form.
    """
    if form not in PHRASINGS:
        raise ValueError(f"found form {form!r}, expected one of {', '.join(PHRASINGS)}")
    rng = random.Random(f"{seed} {form}")
    if form in ("counting_ink", "counting_digit"):
        return _sample_count(rng, seed, split, form)
    if form == "presence":
        return _sample_presence(rng, seed, split)
    while True:
        scene = sample_scene(seed, split)
        facts = [fact for fact in list_facts(scene) if fact.form == form]
        if facts:
            return scene, rng.choice(facts)
        # Only colour can be empty: every repeated digit in two inks. Take another scene.
        seed = rng.getrandbits(40)


def _sample_count(rng: random.Random, seed: int, split: str, form: str) -> tuple[Description, Fact]:
    count = rng.randint(0, len(PLACES))
    num_digits = rng.randint(max(count, 1), len(PLACES))
    values: Sequence[int | str] = list(INKS) if form == "counting_ink" else list(range(10))
    asked = rng.choice(values)
    others = [value for value in values if value != asked]
    chosen = [asked] * count + [rng.choice(others) for _ in range(num_digits - count)]
    if form == "counting_ink":
        scene = sample_scene(seed, split, num_digits, inks=[str(ink) for ink in chosen])
    else:
        scene = sample_scene(seed, split, digits=[int(digit) for digit in chosen])
    return scene, Fact(form, str(asked), str(count))


def _sample_presence(rng: random.Random, seed: int, split: str) -> tuple[Description, Fact]:
    present, look_alike = rng.random() < 0.5, rng.random() < 0.5
    while True:
        scene = sample_scene(seed, split)
        shown = {entry["digit"] for entry in scene["digits"]}
        if present:
            choices = shown
        elif look_alike:
            choices = {LOOK_ALIKES[digit] for digit in shown if digit in LOOK_ALIKES} - shown
        else:
            choices = set(range(10)) - shown
        if choices:
            digit = rng.choice(sorted(choices))
            return scene, Fact("presence", str(digit), "Yes" if present else "No")
        # A scene of 0s and 2s has no look-alike to ask for. Take another scene.
        seed = rng.getrandbits(40)
