"""Stages that have finished are skipped; interrupted ones start anew."""

from pathlib import Path

import pytest

from hyperllava_hf.training.stage_folders import is_complete, read_record, run_once


def test_finished_stage_is_skipped(tmp_path: Path) -> None:
    calls = []

    def run(folder: Path) -> dict:
        calls.append(folder)
        (folder / "weights").write_text("1")
        return {"log": [{"step": 1}]}

    folder = tmp_path / "work" / "tower"
    assert run_once(folder, run)
    assert not run_once(folder, run)
    assert calls == [folder]
    assert read_record(folder) == {"log": [{"step": 1}]}


def test_interrupted_stage_starts_anew(tmp_path: Path) -> None:
    def stop(folder: Path) -> dict:
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "tower", stop)
    assert not is_complete(tmp_path / "tower")
    assert run_once(tmp_path / "tower", lambda folder: {})
    assert not (tmp_path / "tower" / "half").exists()
