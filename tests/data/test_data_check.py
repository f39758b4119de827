"""The check of whole files: every bad row, the summary, the same in workers as here."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperllava_hf.data import DataSource
from hyperllava_hf.data.data_check import check_data, compute_percentiles
from hyperllava_hf.data.row_faults import FAULTS
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import build_mixed_rows, build_row, save_broken_png, say, write_rows


@pytest.fixture
def faulty(tmp_path: Path, pictures: Path) -> DataSource:
    """Twelve good rows and one of every fault that a check can find."""
    for picture in pictures.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    save_broken_png(tmp_path / "broken.png")
    bad = [
        [1, 2],
        {"conversations": [{"from": "tool", "value": "x"}]},
        {"conversations": say("a", "b", "c")[::2]},
        {"conversations": say("a")},
        {"conversations": say("a", "")},
        {"conversations": say("", "b")},
        {"conversations": say("<image>", "b")},
        {"conversations": say("a", "<image>")},
        {"image": "../x.png", "conversations": say("<image>", "b")},
        {"image": "gone.png", "conversations": say("<image>", "b")},
        {"image": "broken.png", "conversations": say("<image>", "b")},
        {"conversations": say("a" * 600, "b")},
    ]
    rows = [row for pair in zip(build_mixed_rows(12), bad, strict=True) for row in pair]
    return DataSource(write_rows(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_fault_is_reported_with_its_number(
    num_workers: int, faulty: DataSource, processor: HyperLlavaProcessor
) -> None:
    report = check_data(faulty, processor=processor, max_length=400, num_workers=num_workers)
    assert [row.number for row in report.bad_rows] == list(range(2, 25, 2))
    assert [row.kind for row in report.bad_rows] == [kind for kind in FAULTS if kind != "refused"]
    assert (report.num_rows, report.is_good, report.error) == (24, False, None)
    counts = (report.num_text_only, report.num_one_image, report.num_several_images)
    assert counts == (4, 4, 4)
    assert report.num_cut == 0
    assert list(report.tokens) == [50, 90, 99, 100]
    assert json.loads(json.dumps(asdict(report)))


def test_without_model_and_images_only_the_text_is_checked(faulty: DataSource) -> None:
    report = check_data(faulty, opens_images=False)
    found = {row.kind for row in report.bad_rows}
    assert found == set(FAULTS) - {
        "refused", "too_long", "broken_image", "missing_image", "image_path"
    }  # fmt: skip
    assert report.tokens is None


def test_tokens_are_counted_as_training_counts_them(
    tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor
) -> None:
    from tests.data.builders import open_small

    path = write_rows(tmp_path / "rows.json", build_mixed_rows(9))
    rows = open_small(path, processor, image_folder=str(pictures))
    exact = sorted(len(rows[i]) for i in range(9))
    source = DataSource(path, image_folder=str(pictures))
    limit = exact[6]
    for opens_images in (True, False):
        report = check_data(
            source, processor=processor, max_length=limit, opens_images=opens_images
        )
        assert report.tokens == {50: exact[4], 90: exact[8], 99: exact[8], 100: exact[8]}
        assert report.num_cut == sum(length > limit for length in exact) > 0


def test_repeated_ids_are_noted_and_no_fault(tmp_path: Path) -> None:
    rows = [build_row(i, 0) for i in (1, 2, 1, 1, 3, 2)] + [{**build_row(1, 0), "id": 1}]
    report = check_data(DataSource(write_rows(tmp_path / "rows.json", rows)))
    assert report.is_good
    assert (report.num_duplicate_ids, report.duplicate_ids) == (3, ["row-1", "row-1", "row-2"])


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"id": 1}, {"id"')
    for name, pattern in (("rows.json", "is cut off in row 2, byte 17"), ("gone.json", "no data")):
        report = check_data(DataSource(str(tmp_path / name)))
        assert pattern in report.error
        assert not report.is_good


def test_a_limit_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length 7 and no model.*Pass --model"):
        check_data(DataSource("rows.json"), max_length=7)


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_a_percentile_is_the_least_count_that_so_many_rows_do_not_exceed(counts: list[int]) -> None:
    for percent, found in compute_percentiles(counts).items():
        assert found in counts
        assert sum(count <= found for count in counts) * 100 >= percent * len(counts)
        assert sum(count < found for count in counts) * 100 < percent * len(counts)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_line_that_is_no_json_is_one_bad_row_among_the_others(
    tmp_path: Path, num_workers: int
) -> None:
    turns = [{"from": "human", "value": "hi?"}, {"from": "gpt", "value": "yes"}]
    good = json.dumps({"conversations": turns})
    empty = json.dumps({"conversations": []})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good}\n{{broken\n{empty}\n{good}\n")
    report = check_data(DataSource(str(path)), num_workers=num_workers)
    assert report.error is None
    assert [bad.number for bad in report.bad_rows] == [2, 3]
    assert "no JSON" in report.bad_rows[0].text


def test_an_id_of_any_shape_is_no_obstacle(tmp_path: Path) -> None:
    deep = "[" * 700 + "]" * 700
    row = json.dumps(build_row(1, 0))[1:].replace('"id": "row-1"', f'"id": {deep}')
    (tmp_path / "rows.json").write_text(f"[{{{row}, {{{row}]")
    report = check_data(DataSource(str(tmp_path / "rows.json")))
    json.dumps(asdict(report))
    assert (report.num_rows, report.bad_rows, report.num_duplicate_ids) == (2, [], 0)
