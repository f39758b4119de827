"""The whole evidence in miniature: interrupted, resumed, reported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hyperllava_hf.evidence import pipeline
from hyperllava_hf.evidence.__main__ import build_parser, main
from hyperllava_hf.evidence.arms import GROUPS
from hyperllava_hf.evidence.result_table import read_table
from hyperllava_hf.evidence.settings import SMOKE


def list_command(folder: Path, *more: str) -> list[str]:
    return [
        *("--smoke", "--jobs", "1", "--work", str(folder / "work"), "--output", str(folder)),
        *("--groups", "ablation", "rate", "--arms", "llava", "guided", *more),
    ]


def test_an_interrupted_evidence_goes_on_where_it_stopped_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "work" / "runs"
    train = pipeline.RunFactory.run
    calls: list[tuple[str, int]] = []

    def interrupt_second(self: Any, arm: Any, seed: int) -> Any:
        if arm.group != "tuning":
            calls.append((arm.name, seed))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return train(self, arm, seed)

    monkeypatch.setattr(pipeline.RunFactory, "run", interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        main(list_command(tmp_path, "--seeds", "1"))
    (first,) = runs.glob("*.json")
    record = first.read_text()
    assert first.name == "llava-1.json"

    main(list_command(tmp_path, "--seeds", "1"))
    assert calls == [("llava", 1), ("guided", 1), ("guided", 1)]
    assert first.read_text() == record
    assert not list((tmp_path / "work").rglob("*.partial"))
    # A projector with a visual expert is another stage 1.
    assert len(list((tmp_path / "work" / "stage1").glob("*-1-*.safetensors"))) == 2
    # Tuned on seeds of its own: four rates in stage 1 with two seeds, four in stage 2.
    tuning = read_table(tmp_path / "results" / "evidence_tuning.csv")
    assert [row["kind"] for row in tuning] == ["guided"] * 12
    assert {row["seed"] for row in tuning} == {"98", "99"}

    rows = read_table(tmp_path / "results" / "evidence.csv")
    assert [(row["arm"], row["seed"]) for row in rows] == [("llava", "1"), ("guided", "1")]
    assert all(row["test_overall"] and row["commit"] and row["torch"] for row in rows)
    text = (tmp_path / "evidence.md").read_text()
    assert "guided - llava" in text
    assert "Not run: llava (seed 2, 3, 4, 5), guided (seed 2, 3, 4, 5), no_visual, " in text
    assert "| instruct | guided | full | 1: " in text
    for name in ("accuracies", "differences", "effects", "weights_guided"):
        assert (tmp_path / "evidence" / f"{name}.png").stat().st_size < 150_000
        assert f"evidence/{name}.png" in text

    # The same arm and seed, trained anew, is the same run.
    first.unlink()
    main(list_command(tmp_path, "--seeds", "1", "--steps", "runs"))
    again, before = json.loads(first.read_text()), json.loads(record)
    for name in ("validation", "align_loss", "instruct_loss", "trained_parameters"):
        assert again[name] == before[name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "nothing"), "found the unknown arms nothing; expected of llava, "),
        (("--arms", "llava", "--seeds", "77"), "found no run in groups"),
        (("--jobs", "0"), "found '0', expected an integer of at least 1"),
    ],
)
def test_a_command_that_asks_for_nothing_known_is_one_error(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list_command(tmp_path, *words))
    assert message in capsys.readouterr().err


def test_a_folder_of_other_settings_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    pipeline.Pipeline(SMOKE, work, tmp_path).select(["ablation"])
    kept = (work / "settings.json").read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["--work", str(work), "--output", str(tmp_path), "--steps", "prepare"])
    assert "holds results of other settings" in capsys.readouterr().err
    assert (work / "settings.json").read_text() == kept
    assert [path.name for path in work.iterdir()] == ["settings.json"]


def test_help_lists_every_group() -> None:
    shown = build_parser().format_help()
    assert all(group in shown for group in GROUPS)


def test_a_miniature_needs_folders_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--smoke", "--steps", "table"])
    assert "--smoke needs --work and --output of its own" in capsys.readouterr().err


def test_no_run_is_never_written_over_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list_command(tmp_path, "--steps", "table"))
    assert re.search("found no finished run in .*expected at least one", capsys.readouterr().err)
    assert not (tmp_path / "results").exists()
