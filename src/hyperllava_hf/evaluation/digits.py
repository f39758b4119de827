"""Measure a model on digit scenes, and write what was measured.

    python -m hyperllava_hf.evaluation.digits --model FOLDER --split validation
    python -m hyperllava_hf.evaluation.digits --model FOLDER --split test --output metrics.json

The test split is the package's fixed file of 1,000 questions a family; it is read by this command
alone and is not for choosing anything. Beside the figures stand what the same model answers to
held-out phrasings, what it answers when it cannot see (no image; another question's image), and
what a constant answer for each form would reach.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .answering import answer_questions
from .digit_questions import FAMILIES, FORMS
from .digit_scenes import draw_scene
from .question_file import QUESTIONS_A_FAMILY, AskedQuestion, build_questions, load_questions
from .scoring import bootstrap_interval, is_exact_match, score_majority

SHUFFLE_SEED = 0


def load_split_questions(split: str, num_questions: int) -> list[AskedQuestion]:
    """Load the fixed test questions, or build those of another split.

    Args:
        split: "test", or another split of `digit_scenes`.
        num_questions: Questions a family; of the fixed file, its first ones.

    Returns:
        The questions.
    """
    if split != "test":
        return build_questions(split, num_questions)
    questions = load_questions()
    return [
        question
        for family in FAMILIES
        for question in [q for q in questions if q.family == family][:num_questions]
    ]


def summarize(questions: Sequence[AskedQuestion], correct: Sequence[bool]) -> dict[str, Any]:
    """Summarise what was right.

    Args:
        questions: Questions.
        correct: Whether each was answered rightly.

    Returns:
        For each family its accuracy, interval and number of questions, and the same for each
        form of a family that has several.
    """
    summary: dict[str, Any] = {}
    for family in FAMILIES:
        if not any(question.family == family for question in questions):
            continue
        summary[family] = _measure(questions, correct, family, "family")
        if len(FORMS[family]) > 1:
            summary[family]["forms"] = {
                form: _measure(questions, correct, form, "form") for form in FORMS[family]
            }
    return summary


def _measure(
    questions: Sequence[AskedQuestion], correct: Sequence[bool], name: str, attribute: str
) -> dict[str, Any]:
    rows = [i for i, question in enumerate(questions) if getattr(question, attribute) == name]
    hits = [correct[i] for i in rows]
    low, high = bootstrap_interval(hits, [questions[i].get_samples() for i in rows])
    return {
        "accuracy": round(sum(hits) / len(hits), 4),
        "interval": [round(low, 4), round(high, 4)],
        "num_questions": len(hits),
    }


def measure_model(
    model: Any,
    processor: Any,
    questions: Sequence[AskedQuestion],
    batch_size: int = 64,
    with_baselines: bool = True,
) -> dict[str, Any]:
    """Measure a model on questions.

    Args:
        model: A model with `generate`.
        processor: Its processor.
        questions: The questions.
        batch_size: Questions a batch.
        with_baselines: Whether held-out phrasings and blind baselines are measured as well.

    Returns:
        Summaries by name: "accuracy", "held_out_phrasings" and "baselines".
    """
    images = [draw_scene(question.scene) for question in questions]

    def score(
        texts: Sequence[str], pictures: Sequence[Image.Image | None], label: str
    ) -> dict[str, Any]:
        groups = [question.form for question in questions]
        answers = answer_questions(model, processor, texts, pictures, groups, batch_size, label)
        pairs = zip(answers, questions, strict=True)
        return summarize(questions, [is_exact_match(text, asked.answer) for text, asked in pairs])

    asked = [question.question for question in questions]
    metrics = {"accuracy": score(asked, images, "questions")}
    if not with_baselines:
        return metrics
    held_out = [question.held_out_question for question in questions]
    metrics["held_out_phrasings"] = score(held_out, images, "held-out phrasings")
    forms = [question.form for question in questions]
    answers = [question.answer for question in questions]
    metrics["baselines"] = {
        "question_only": score(asked, [None] * len(asked), "question only"),
        "shuffled_image": score(asked, shuffle_images(questions, images), "shuffled images"),
        "majority_answer": summarize(questions, score_majority(forms, answers)),
    }
    return metrics


def shuffle_images(
    questions: Sequence[AskedQuestion], images: Sequence[Image.Image]
) -> list[Image.Image]:
    """Give each question the image of another question of its form.

    Args:
        questions: Questions.
        images: Their images.

    Returns:
        The images, permuted within each form.
    """
    shuffled = list(images)
    rng = random.Random(SHUFFLE_SEED)
    for form in sorted({question.form for question in questions}):
        rows = [i for i, question in enumerate(questions) if question.form == form]
        order = rng.sample(rows, len(rows))
        # A cycle through a random order leaves nobody with the own image.
        for i, j in zip(order, order[1:] + order[:1], strict=True):
            shuffled[i] = images[j]
    return shuffled


def describe_run(split: str, num_questions: int, test_file: bool) -> dict[str, Any]:
    """Record what a figure needs beside it: command, versions and date.

    Args:
        split: The split.
        num_questions: Questions a family.
        test_file: Whether the fixed file was read.

    Returns:
        The record.
    """
    return {
        "command": f"python -m hyperllava_hf.evaluation.digits --model MODEL --split {split}",
        "split": split,
        "questions": "digit_questions_test.jsonl.gz" if test_file else "built by seed",
        "num_questions_a_family": num_questions,
        "interval": "95 %, bootstrap over the glyphs of the split",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": "cpu",
    }


def load_model(folder: str) -> tuple[Any, Any]:
    """Load a model and its processor.

    Args:
        folder: A folder or a Hub id.

    Returns:
        The model, in evaluation mode, and the processor.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a model and write or print the metrics.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(description="Measure a HyperLLaVA on digit scenes.")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--output", type=Path, help="JSON file; standard output when left out")
    parser.add_argument("--num-questions", type=int, default=QUESTIONS_A_FAMILY)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--no-baselines", action="store_true")
    options = parser.parse_args(arguments)

    questions = load_split_questions(options.split, options.num_questions)
    model, processor = load_model(options.model)
    metrics = {
        **describe_run(options.split, options.num_questions, options.split == "test"),
        **measure_model(model, processor, questions, options.batch_size, not options.no_baselines),
    }
    text = json.dumps(metrics, indent=2) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
