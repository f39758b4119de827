"""The tables of docs/loading.md say what benchmarks/results/quantization.csv says."""

import csv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAMILIES = ("reading", "colour", "counting", "presence", "description")


def test_tables_say_what_the_result_file_says():
    text = (ROOT / "docs" / "loading.md").read_text(encoding="utf-8")
    with (ROOT / "benchmarks" / "results" / "quantization.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["memory_is"] == "measured"]
    expected = [
        [row["setting"], row["gib"], *(row[f"accuracy_{family}"] for family in FAMILIES)]
        for row in measured
    ]
    settings = [row["setting"] for row in measured]
    for size in ("7B", "13B"):
        counted = {row["setting"]: row["gib"] for row in rows if row["model"] == size}
        expected.append([size, *(counted[setting] for setting in settings)])
    assert len(expected) == 6
    for cells in expected:
        assert f"| {' | '.join(cells)} |\n" in text
    assert {row["questions_a_family"] for row in measured} == {"100"}
