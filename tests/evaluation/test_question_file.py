"""The fixed file: its bytes, its size, its balance, and that it holds test handwriting alone."""

from collections import Counter
from pathlib import Path

from hyperllava_hf.evaluation.digit_questions import (
    FAMILIES,
    HELD_OUT_PHRASINGS,
    PHRASINGS,
    list_questions,
)
from hyperllava_hf.evaluation.digit_scenes import SPLITS
from hyperllava_hf.evaluation.question_file import (
    TEST_QUESTIONS,
    build_questions,
    load_questions,
    main,
    save_questions,
)


def test_committed_file_is_what_its_command_writes(tmp_path: Path) -> None:
    written = tmp_path / "questions.jsonl.gz"
    main(["--split", "test", "--output", str(written)])
    assert load_questions(written) == load_questions(TEST_QUESTIONS)
    assert TEST_QUESTIONS.stat().st_size < 400_000


def test_committed_file_holds_a_thousand_questions_a_family_of_test_digits() -> None:
    questions = load_questions()
    assert Counter(q.family for q in questions) == dict.fromkeys(FAMILIES, 1000)
    forms = Counter(q.form for q in questions)
    assert [forms[f"counting_{name}"] for name in ("all", "ink", "digit")] == [334, 333, 333]
    samples = {entry["sample"] for q in questions for entry in q.scene["digits"]}
    assert samples <= set(SPLITS["test"])
    # Nearly every test glyph is asked about.
    assert len(samples) >= 380


def test_every_question_is_one_of_its_scene() -> None:
    for asked in load_questions()[::37]:
        plain = [q for i in range(5) for q in list_questions(asked.scene, i)]
        held_out = [q for i in range(2) for q in list_questions(asked.scene, i, held_out=True)]
        assert (asked.family, asked.question, asked.answer) in plain
        assert (asked.family, asked.held_out_question, asked.answer) in held_out


def test_every_form_is_asked_in_every_phrasing() -> None:
    asked = load_questions()
    for form in PHRASINGS:
        rows = [q for q in asked if q.form == form]
        words = {" ".join(w for w in q.question.split() if w.isalpha()) for q in rows}
        assert len(words) >= len(PHRASINGS[form])
        held_out = {" ".join(w for w in q.held_out_question.split() if w.isalpha()) for q in rows}
        assert len(held_out) >= len(HELD_OUT_PHRASINGS[form])


def test_reading_hangs_on_the_glyph_that_is_asked_about() -> None:
    for asked in build_questions("validation", 20):
        entries = asked.scene["digits"]
        if asked.family == "reading":
            (sample,) = asked.get_samples()
            assert [e["sample"] for e in entries if e["place"] == asked.subject] == [sample]
        else:
            assert asked.get_samples() == [e["sample"] for e in entries]


def test_bytes_do_not_depend_on_time_or_name(tmp_path: Path) -> None:
    questions = build_questions("validation", 3)
    for name in ("a.gz", "b.gz"):
        save_questions(questions, tmp_path / name)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
