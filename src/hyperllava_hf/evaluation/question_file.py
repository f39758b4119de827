"""The fixed file of test questions that stands behind the bundled checkpoint's figures.

    python -m hyperllava_hf.evaluation.question_file --split test --output FILE.jsonl.gz

1,000 questions a family, one a line, each with the description of its scene, its wording in one of
the five training phrasings and in one of the two held-out ones. The command makes the same bytes
every time; the file for the test split is `digit_questions_test.jsonl.gz` beside this module.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .digit_questions import (
    FAMILIES,
    FORMS,
    NUM_HELD_OUT_PHRASINGS,
    NUM_PHRASINGS,
    sample_balanced_fact,
    word_fact,
)
from .digit_scenes import SPLITS, Description

QUESTIONS_A_FAMILY = 1000
TEST_QUESTIONS = Path(__file__).with_name("digit_questions_test.jsonl.gz")


@dataclass(frozen=True)
class AskedQuestion:
    """One line of the file.

    Attributes:
        family: One of `FAMILIES`.
        form: A key of `PHRASINGS`.
        subject: The place, ink or digit that is asked about, or "".
        question: A training phrasing.
        held_out_question: A held-out phrasing of the same.
        answer: The one right answer.
        scene: The scene's description.
    """

    family: str
    form: str
    subject: str
    question: str
    held_out_question: str
    answer: str
    scene: Description

    def get_samples(self) -> list[int]:
        """List the handwriting that the answer hangs on.

        Returns:
            Sample numbers: of the place that is asked about, or of the whole scene.
        """
        digits: list[dict[str, Any]] = self.scene["digits"]
        if self.form == "reading":
            digits = [entry for entry in digits if entry["place"] == self.subject]
        return [entry["sample"] for entry in digits]


def build_questions(
    split: str, num_questions: int = QUESTIONS_A_FAMILY, first_seed: int = 0
) -> list[AskedQuestion]:
    """Build the questions of a split, family by family, the forms of a family in turn.

    Args:
        split: A split of `digit_scenes`.
        num_questions: Questions a family.
        first_seed: Seed of a family's first scene; the next scenes' seeds count on.

    Returns:
        The questions.
    """
    questions = []
    for family in FAMILIES:
        forms = FORMS[family]
        for i in range(num_questions):
            # Forms and phrasings count at different speeds, so that every form gets every one.
            turn = i // len(forms)
            scene, fact = sample_balanced_fact(first_seed + i, split, forms[i % len(forms)])
            asked = word_fact(fact, turn % NUM_PHRASINGS)
            held_out = word_fact(fact, turn % NUM_HELD_OUT_PHRASINGS, held_out=True)
            questions.append(
                AskedQuestion(
                    family=family,
                    form=fact.form,
                    subject=fact.subject,
                    question=asked.question,
                    held_out_question=held_out.question,
                    answer=fact.answer,
                    scene=scene,
                )
            )
    return questions


def save_questions(questions: Sequence[AskedQuestion], path: Path) -> None:
    """Write questions as gzipped JSON lines; the same questions always give the same bytes.

    Args:
        questions: The questions.
        path: The file.
    """
    lines = [json.dumps(asdict(question), separators=(",", ":")) for question in questions]
    # A time stamp or a file name in the header would change the bytes.
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def load_questions(path: Path = TEST_QUESTIONS) -> list[AskedQuestion]:
    """Read a file that `save_questions` wrote.

    Args:
        path: The file; the package's test questions by default.

    Returns:
        The questions.
    """
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [AskedQuestion(**json.loads(line)) for line in lines]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the questions of a split to a file.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(description="Write the fixed questions about digit scenes.")
    parser.add_argument("--split", choices=list(SPLITS), default="test")
    parser.add_argument("--output", type=Path, default=TEST_QUESTIONS)
    parser.add_argument("--num-questions", type=int, default=QUESTIONS_A_FAMILY)
    options = parser.parse_args(arguments)
    save_questions(build_questions(options.split, options.num_questions), options.output)


if __name__ == "__main__":
    main()
