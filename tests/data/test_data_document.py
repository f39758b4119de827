"""docs/data.md: its code runs, and its table names every fault."""

import re
from pathlib import Path
from typing import Any

import pytest

from hyperllava_hf.data.row_faults import FAULTS
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import build_mixed_rows, save_pictures, write_rows

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_table_of_faults_names_every_one() -> None:
    section = TEXT.split("## Bad rows in training")[1].split("##")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][2:]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(FAULTS)


def test_the_code_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: HyperLlavaProcessor
) -> None:
    write_rows(tmp_path / "train.json", build_mixed_rows(20))
    save_pictures(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```\n(from .*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    processor.save_pretrained(tmp_path / "hyperllava-7b")
    names: dict[str, Any] = {}
    exec(code.replace("num_workers=8", "num_workers=0"), names)
    batches = list(names["loader"])
    assert [len(batch["input_ids"]) for batch in batches] == [16, 4]
    assert all(batch["num_skipped_rows"] == 0 for batch in batches)
