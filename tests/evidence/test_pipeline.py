"""The whole evidence in miniature: interrupted, resumed, reported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyperllava_hf.evidence import pipeline
from hyperllava_hf.evidence.__main__ import main
from hyperllava_hf.evidence.arms import GROUPS
from hyperllava_hf.evidence.result_table import read_table


def list_command(work: Path, *more: str) -> list[str]:
    return [
        *("--smoke", "--jobs", "1", "--work", str(work / "work"), "--output", str(work / "docs")),
        *(
            "--arms",
            "llava",
            "guided",
            "--seeds",
            "1",
            "2",
            "--groups",
            "common_rate",
            "ablation",
            *more,
        ),
    ]


def test_an_interrupted_evidence_goes_on_where_it_stopped_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "work" / "runs"
    train = pipeline.RunFactory.run
    calls: list[tuple[str, int]] = []

    def interrupt_third(self: object, arm: object, seed: int) -> object:
        calls.append((arm.name, seed))  # type: ignore[attr-defined]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, arm, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline.RunFactory, "run", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        main(list_command(tmp_path))
    finished = {path: path.read_text() for path in runs.glob("*.json")}
    assert sorted(path.name for path in finished) == ["llava-1.json", "llava-2.json"]

    main(list_command(tmp_path))
    assert calls[2:] == [("guided", 1), ("guided", 1), ("guided", 2)]
    assert all(path.read_text() == text for path, text in finished.items())
    assert not list((tmp_path / "work").rglob("*.partial"))

    rows = read_table(tmp_path / "docs" / "results" / "evidence.csv")
    assert [(row["arm"], row["seed"]) for row in rows] == [
        *(("llava", "1"), ("llava", "2"), ("guided", "1"), ("guided", "2"))
    ]
    assert all(row["test_overall"] and row["commit"] and row["torch"] for row in rows)
    # Stage 1 of the arms differs, so each has its own; the two seeds too.
    assert len(list((tmp_path / "work" / "stage1").glob("*.safetensors"))) == 4
    text = (tmp_path / "docs" / "evidence.md").read_text()
    assert "guided - llava" in text
    assert "4 of" in text
    assert "no_visual, " in text
    for name in ("accuracies", "differences", "effects", "weights_guided"):
        assert (tmp_path / "docs" / "evidence" / f"{name}.png").stat().st_size < 150_000
        assert f"evidence/{name}.png" in text


def test_two_runs_of_the_same_arm_and_seed_are_equal(tmp_path: Path) -> None:
    records = []
    for name in ("one", "two"):
        folder = tmp_path / name
        main([*list_command(folder, "--steps", "prepare", "runs")[:-8], "--seeds", "1"])
        record = json.loads((folder / "work" / "runs" / "guided-1.json").read_text())
        records.append({k: v for k, v in record.items() if k not in ("seconds", "date")})
    assert records[0] == records[1]


def test_a_choice_without_runs_names_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no run in groups"):
        main(list_command(tmp_path, "--arms", "nothing"))


def test_help_needs_no_training() -> None:
    command = [sys.executable, "-m", "hyperllava_hf.evidence", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(group in shown for group in GROUPS)
