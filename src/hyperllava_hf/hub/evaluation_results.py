"""Measured results beside a checkpoint, as the card's table and as the Hub's metadata."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

RESULT_FILE = "metrics.json"
NEEDED = ("accuracy", "split", "questions", "command", "date")


@dataclass(frozen=True)
class Score:
    """One family's accuracy."""

    family: str
    accuracy: float
    interval: tuple[float, float] | None
    num_questions: int


@dataclass(frozen=True)
class Results:
    """What one evaluation run measured, and how to run it again."""

    questions: str
    split: str
    command: str
    date: str
    scores: list[Score]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    environment: str = ""

    @property
    def dataset(self) -> str:
        """The questions' name without its suffixes."""
        return Path(self.questions).name.split(".")[0]


def read_scores(families: dict[str, Any]) -> list[Score]:
    """Read the scores of one set of answers."""
    return [
        Score(
            family,
            float(entry["accuracy"]),
            tuple(entry["interval"]) if entry.get("interval") else None,
            int(entry["num_questions"]),
        )
        for family, entry in families.items()
    ]


def load_results(path: Path | None) -> Results | None:
    """Load a result file in the form that `hyperllava_hf.evaluation.digits` writes.

    Args:
        path: the file; None if there is none.

    Returns:
        The results, or None if there is no file, or one of another form.
    """
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(name not in content for name in NEEDED):
            return None
        versions = content.get("versions", {})
        others = {
            "held_out_phrasings": content.get("held_out_phrasings"),
            **content.get("baselines", {}),
        }
        return Results(
            questions=content["questions"],
            split=content["split"],
            command=content["command"],
            date=content["date"],
            scores=read_scores(content["accuracy"]),
            baselines={
                name: {score.family: score.accuracy for score in read_scores(families)}
                for name, families in others.items()
                if families
            },
            environment=", ".join(f"{name} {version}" for name, version in versions.items()),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def build_metadata(results: Results) -> list[EvalResult]:
    """Build the entries of the card's model-index.

    Args:
        results: what was measured.

    Returns:
        One entry a family.
    """
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=results.dataset,
            dataset_name=results.dataset,
            dataset_split=results.split,
            metric_type="accuracy",
            metric_name=f"{score.family} accuracy",
            metric_value=score.accuracy,
        )
        for score in results.scores
    ]


def format_table(results: Results) -> str:
    """Write the results as a table.

    Args:
        results: what was measured.

    Returns:
        Markdown.
    """
    headings = [
        "family",
        "questions",
        "accuracy",
        *(n.replace("_", " ") for n in results.baselines),
    ]
    rows = [headings, ["---"] * len(headings)]
    for score in results.scores:
        accuracy = f"{100 * score.accuracy:.1f} %"
        if score.interval:
            low, high = (100 * end for end in score.interval)
            accuracy += f" ({low:.1f}-{high:.1f})"
        others = [line.get(score.family) for line in results.baselines.values()]
        cells = ["-" if value is None else f"{100 * value:.1f} %" for value in others]
        rows.append([score.family, str(score.num_questions), accuracy, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
