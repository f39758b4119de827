"""The committed report: what its generator writes from the committed tables."""

import json
from pathlib import Path

from hyperllava_hf.evidence.arms import list_arms
from hyperllava_hf.evidence.report import build_report
from hyperllava_hf.evidence.result_table import COLUMNS, describe_costs, read_table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_report_is_what_its_generator_writes_from_the_committed_tables() -> None:
    rows = read_table(DOCS / "results" / "evidence.csv")
    effects = json.loads((DOCS / "results" / "evidence_effects.json").read_text(encoding="utf-8"))
    assert build_report(DOCS, rows, effects) == (DOCS / "evidence.md").read_text(encoding="utf-8")


def test_every_committed_run_is_complete() -> None:
    rows = read_table(DOCS / "results" / "evidence.csv")
    arms = {arm.name: arm for arm in list_arms()}
    assert len({(row["arm"], row["seed"]) for row in rows}) == len(rows) > 0
    for row in rows:
        assert tuple(row) == COLUMNS
        assert int(row["seed"]) in arms[row["arm"]].seeds
        rates = arms[row["arm"]].rates
        assert (float(row["visual_rate"]), float(row["language_rate"])) == rates
        costs = describe_costs(arms[row["arm"]])
        assert {name: int(row[name]) for name in costs} == costs
        assert 0.0 <= float(row["test_overall"]) <= 1.0
        assert 0.0 < float(row["test_loss"])
        assert 0.0 < float(row["seconds"])
        assert len(row["commit"]) >= 7
