"""What `make test-versions` wrote: it ran on the releases pinned now, and all was equal."""

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "test_versions.py"
    spec = importlib.util.spec_from_file_location("test_versions_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_release_loaded_what_every_release_saved(script):
    with script.RESULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    versions = script.list_versions()
    assert [(row["reader"], row["writer"]) for row in rows] == [
        (reader, writer) for reader in versions for writer in versions
    ]
    assert {row["outcome"] for row in rows} == {"equal"}
    assert all(float(row["max_logit_difference"]) <= script.TOLERANCE for row in rows)


def test_oldest_releases_are_the_bounds_of_the_metadata(script):
    metadata = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    lowest = script.OLDEST[0].removesuffix(".0")
    assert f"transformers >= {lowest}, < 6" in metadata


def test_another_answer_or_other_logits_are_no_success(script):
    def judge(difference, answers_equal=True):
        return script.judge({"max_logit_difference": difference, "answers_equal": answers_equal})

    assert judge(1e-5) == "equal"
    assert judge(1e-2) == "other logits"
    assert judge(0.0, answers_equal=False) == "another answer"
