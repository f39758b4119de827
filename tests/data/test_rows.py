"""Map-style rows: the same in workers as here, bad ones never silent, lengths near the truth."""

import gc
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hyperllava_hf.data import ConversationCollator, ModalityLengthSampler, Row, Rows
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import (
    build_mixed_rows,
    build_row,
    describe_row,
    list_rows,
    open_small,
    save_broken_png,
    say,
    write_rows,
)

LIMIT = 4096


def collate(rows: Rows, on_bad_row: str = "stop") -> ConversationCollator:
    encoder = rows.encoder
    return ConversationCollator(encoder.processor, encoder.template, LIMIT, on_bad_row)


def list_batches(rows: Any, on_bad_row: str = "stop", **loader: Any) -> list[dict]:
    options = {"batch_size": 3, "collate_fn": collate(rows, on_bad_row), **loader}
    return list(DataLoader(rows, **options))


def assert_same_batches(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def mixed(tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor) -> Rows:
    """Ten rows with no, one and two images."""
    path = write_rows(tmp_path / "rows.json", build_mixed_rows(10), indent=1)
    return open_small(path, processor, image_folder=str(pictures))


def test_a_batch_holds_its_rows_padded_on_the_right(mixed: Rows) -> None:
    rows = [mixed[0], mixed[1], mixed[2]]
    batch = collate(mixed)(rows)
    assert "num_skipped_rows" not in batch
    length = max(map(len, rows))
    pad = mixed.encoder.processor.tokenizer.pad_token_id
    for place, row in enumerate(rows):
        rest = length - len(row)
        assert batch["input_ids"][place].tolist() == row.input_ids + [pad] * rest
        assert batch["labels"][place].tolist() == row.labels + [-100] * rest
        assert batch["guidance_mask"][place].tolist() == row.guidance_mask + [0] * rest
        assert batch["attention_mask"][place].tolist() == [1] * len(row) + [0] * rest
    assert batch["pixel_values"].shape == (3, 3, 28, 28)  # one, none, two images
    assert torch.equal(batch["pixel_values"][1:], torch.from_numpy(rows[2].pixel_values))


def test_a_batch_is_what_the_processor_makes_of_the_same_conversations(mixed: Rows) -> None:
    from hyperllava_hf.data.row_conversations import parse_conversation

    written = build_mixed_rows(3)
    folder = Path(mixed._stores[0].source.image_folder)
    found = [parse_conversation(row) for row in written]
    expected = mixed.encoder.processor.apply_chat_template(
        [conversation.messages for conversation in found],
        images=[[str(folder / name) for name in conversation.images] for conversation in found],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_labels=True,
        padding=True,
    )
    batch = collate(mixed)([mixed[0], mixed[1], mixed[2]])
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_batch_of_text_alone_has_no_pixels(mixed: Rows) -> None:
    assert "pixel_values" not in collate(mixed)([mixed[1], mixed[4]])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_make_the_batches_that_this_process_makes(mixed: Rows, method: str) -> None:
    here = list_batches(mixed)
    # A spawned worker imports torch and transformers anew, which one may do, not two.
    num_workers = {"fork": 2, "spawn": 1}[method]
    there = list_batches(mixed, num_workers=num_workers, multiprocessing_context=method)
    assert_same_batches(here, there)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json.gz", "rows.jsonl.gz"])
def test_every_kind_of_file_gives_the_same_rows_and_fingerprint(
    mixed: Rows, name: str, tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor
) -> None:
    path = write_rows(tmp_path / name, build_mixed_rows(10))
    rows = open_small(path, processor, image_folder=str(pictures))
    assert rows.fingerprint == mixed.fingerprint
    assert rows.lengths == mixed.lengths
    assert list_rows(rows) == list_rows(mixed)
    assert list_rows(pickle.loads(pickle.dumps(rows))) == list_rows(mixed)


def change_answer(rows: list[dict]) -> None:
    rows[3]["conversations"][1]["value"] += "."


def change_image(rows: list[dict]) -> None:
    rows[0]["image"] = "3.png"


def change_order(rows: list[dict]) -> None:
    rows[4], rows[5] = rows[5], rows[4]


def drop_last(rows: list[dict]) -> None:
    del rows[-1]


@pytest.mark.parametrize("change", [change_answer, change_image, change_order, drop_last])
def test_other_data_has_another_fingerprint(
    change: Any, mixed: Rows, tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor
) -> None:
    rows = build_mixed_rows(10)
    change(rows)
    path = write_rows(tmp_path / "other.json", rows)
    other = open_small(path, processor, image_folder=str(pictures))
    assert other.fingerprint != mixed.fingerprint


def test_lengths_are_near_the_truth_and_negative_without_images(mixed: Rows) -> None:
    exact = [len(mixed[i]) for i in range(len(mixed))]
    for place, (found, length) in enumerate(zip(mixed.lengths, exact, strict=True)):
        assert (found < 0) == (place % 3 == 1)
        assert abs(abs(found) - length) < 0.25 * length
    order = list(ModalityLengthSampler(mixed.lengths, 2, 1, 0))
    assert sorted(order) == list(range(10))


def test_several_sources_follow_one_another(
    tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor
) -> None:
    rows = build_mixed_rows(7)
    one = write_rows(tmp_path / "one.json", rows[:3])
    other = write_rows(tmp_path / "other.jsonl", rows[3:])
    whole = write_rows(tmp_path / "whole.json", rows)
    split = open_small([one, other], processor, image_folder=str(pictures))
    assert list_rows(split) == list_rows(open_small(whole, processor, image_folder=str(pictures)))
    assert describe_row(split[-1]) == describe_row(split[6])
    with pytest.raises(IndexError, match="index 7, expected less than 7"):
        split[7]


@pytest.fixture
def broken(tmp_path: Path, pictures: Path) -> str:
    """Rows 1 to 8: 2 is no row, the images of 3, 4 and 8 are broken, 6 has a missing one."""
    save_broken_png(tmp_path / "broken.png")
    for picture in pictures.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    rows = [build_row(i) for i in range(8)]
    rows[1] = {"id": "bad", "conversations": say("Why?", " ")}
    for place in (2, 3, 7):
        rows[place]["image"] = "broken.png"
    rows[5]["image"] = "gone.png"
    return write_rows(tmp_path / "rows.json", rows)


def test_bad_rows_are_left_out_and_the_next_good_one_stands_in(
    broken: str, processor: HyperLlavaProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = open_small(broken, processor, on_bad_row="skip")
    assert (len(rows), rows.num_bad_rows) == (6, 2)
    assert "2 of 8 rows are bad" in caplog.text
    assert "row 2 (id 'bad'): the answer in turn 1 is empty" in caplog.text
    assert "row 6 (id 'row-5'): there is no image 'gone.png'" in caplog.text
    caplog.clear()
    found = [rows[i] for i in range(6)]
    # The last row's place is taken by the first, as the rows go round.
    assert [row.number for row in found] == [1, 5, 5, 5, 7, 1]
    assert [row.num_skipped for row in found] == [0, 2, 1, 0, 0, 1]
    assert caplog.text.count("row 3 (id 'row-2')") == 1
    assert caplog.text.count("row 4 (id 'row-3')") == 1


def test_the_batch_counts_the_rows_that_were_skipped(
    broken: str, processor: HyperLlavaProcessor
) -> None:
    rows = open_small(broken, processor, on_bad_row="skip")
    for num_workers in (0, 2):
        batches = list_batches(rows, "skip", num_workers=num_workers)
        assert [batch["num_skipped_rows"].item() for batch in batches] == [3, 1]
        assert all(batch["num_skipped_rows"].dtype == torch.int64 for batch in batches)
        assert [len(batch["input_ids"]) for batch in batches] == [3, 3]


def test_a_bad_row_stops_the_run_also_from_a_worker(
    tmp_path: Path, processor: HyperLlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long torch waits for the worker that has already gone.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    save_broken_png(tmp_path / "broken.png")
    row = {**build_row(7), "image": "broken.png"}
    rows = open_small(write_rows(tmp_path / "rows.jsonl", [row, build_row(1, 0)]), processor)
    pattern = r"(?s)rows\.jsonl, row 1 \(id 'row-7'\): image 0 \('broken\.png'\).*cut short"
    with pytest.raises(ValueError, match=pattern):
        rows[0]
    with pytest.raises(ValueError, match=pattern):
        list_batches(rows, num_workers=1)
    gc.collect()


def test_rows_that_are_all_bad_are_refused(tmp_path: Path, processor: HyperLlavaProcessor) -> None:
    save_broken_png(tmp_path / "broken.png")
    row = {**build_row(0), "image": "broken.png"}
    rows = open_small(write_rows(tmp_path / "rows.json", [row, row]), processor, on_bad_row="skip")
    with pytest.raises(ValueError, match="none of 2 rows can be trained on"):
        rows[0]
    path = write_rows(tmp_path / "none.json", [{"id": 1}])
    with pytest.raises(ValueError, match=r"none of the 1 rows of .* can be trained on"):
        open_small(path, processor, on_bad_row="skip")


def test_too_long_rows_are_skipped_where_they_are_met(
    tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    rows = [build_row(0, 0), {"conversations": say("x" * 500, "too late")}, build_row(2, 0)]
    path = write_rows(tmp_path / "rows.json", rows)
    opened = open_small(path, processor, max_length=200, on_bad_row="skip")
    assert [(opened[i].number, opened[i].num_skipped) for i in range(3)] == [(1, 0), (3, 1), (3, 0)]
    with pytest.raises(ValueError, match=r"row 2: the row has .* its first answer begins behind"):
        open_small(path, processor, max_length=200)[1]


def test_a_collator_with_a_smaller_limit_than_the_rows_is_refused(mixed: Rows) -> None:
    collator = ConversationCollator(mixed.encoder.processor, "vicuna_v1", 10)
    with pytest.raises(ValueError, match=r"expected at most 10.*another max_length"):
        collator([mixed[0]])
    with pytest.raises(ValueError, match="empty batch"):
        collator([])


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_no_choice_is_refused(
    streaming: bool, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    path = write_rows(tmp_path / "rows.json", [build_row(0, 0)])
    with pytest.raises(ValueError, match="on_bad_row='ignore', expected 'stop' or 'skip'"):
        open_small(path, processor, on_bad_row="ignore", streaming=streaming)
    with pytest.raises(ValueError, match="no data source"):
        open_small([], processor, streaming=streaming)


def test_rows_say_what_they_are(mixed: Rows) -> None:
    assert isinstance(mixed[0], Row)
    assert json.dumps(mixed[0].input_ids)
    assert mixed.num_bad_rows == 0
