"""Results of a run, read from its file."""

import json
from pathlib import Path

import pytest

from hyperllava_hf.checkpoints import get_bundled_checkpoint
from hyperllava_hf.hub.evaluation_results import build_metadata, format_table, load_results

METRICS = Path(get_bundled_checkpoint()) / "metrics.json"


def test_metadata_says_what_the_file_says() -> None:
    results = load_results(METRICS)
    assert results is not None
    measured = json.loads(METRICS.read_text())["accuracy"]
    entries = {entry.metric_name: entry.metric_value for entry in build_metadata(results)}
    assert entries == {f"{f} accuracy": value["accuracy"] for f, value in measured.items()}
    assert {entry.dataset_split for entry in build_metadata(results)} == {"test"}


def test_table_has_a_row_a_family_and_its_baselines() -> None:
    results = load_results(METRICS)
    assert results is not None
    lines = format_table(results).splitlines()
    assert len(lines) == 2 + len(results.scores)
    assert "question only" in lines[0]
    first = results.scores[0]
    assert f"| {first.family} | 1000 | {100 * first.accuracy:.1f} % (" in lines[2]


@pytest.mark.parametrize(
    "content", ["no json", "[]", '{"eval_loss": 0.3}', '{"accuracy": 1, "split": "test"}']
)
def test_files_of_another_form_are_no_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    assert load_results(path) is None


def test_no_file_is_no_result() -> None:
    assert load_results(None) is None
