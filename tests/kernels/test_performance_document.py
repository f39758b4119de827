"""docs/performance.md says what the committed results say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results(report):
    text = report.DOCUMENT.read_text(encoding="utf-8")
    assert {name for _, name, _ in report.BLOCK.findall(text)} == set(report.TABLES)
    assert report.update_text(text) == text, "run python benchmarks/report.py"


def test_every_row_says_how_it_was_measured(report):
    measured = [path.stem for path in report.RESULTS.glob("bench_*.csv")]
    assert measured
    for name in measured:
        for row in report.read_rows(name):
            told = ("command", "commit", "device", "versions", "date", "variant")
            assert all(row[field] for field in told), name


def test_a_ratio_is_shown_with_its_spread_and_judged_by_its_goal(report):
    row = {"ratio_median": "1.04", "ratio_p20": "1.02", "ratio_p80": "1.061", "goal": "1.03"}
    assert report.show_ratio(row) == "1.040 (1.020-1.061), goal 1.030: missed"
    assert report.show_ratio({**row, "goal": "1.05"}).endswith("goal 1.050: met")
    assert report.show_ratio({**row, "goal": ""}) == "1.040 (1.020-1.061)"
