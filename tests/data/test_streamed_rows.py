"""Streamed rows: the same content as map-style ones, shared out without loss, ranks in step."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hyperllava_hf.data import ConversationCollator, StreamedRows
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

NUM_ROWS = 13


@pytest.fixture
def stream(tmp_path: Path, pictures: Path, processor: HyperLlavaProcessor) -> StreamedRows:
    """Thirteen good rows in two files."""
    rows = build_mixed_rows(NUM_ROWS)
    paths = [
        write_rows(tmp_path / "one.jsonl", rows[:9]),
        write_rows(tmp_path / "other.json", rows[9:]),
    ]
    return open_small(paths, processor, streaming=True, image_folder=str(pictures))


def read(stream: StreamedRows, rank: int, world_size: int, num_workers: int) -> list[tuple]:
    """What one rank reads, through a loader with one row a batch."""
    stream.rank, stream.world_size = rank, world_size
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    return [describe_row(row) for row in loader]


def test_a_stream_gives_what_map_style_rows_give(stream: StreamedRows) -> None:
    sources = [store.source for store in stream._stores]
    rows = open_small(
        [source.path for source in sources],
        stream.encoder.processor,
        image_folder=sources[0].image_folder,
    )
    assert list_rows(stream) == list_rows(rows)
    assert list_rows(stream) == list_rows(rows), "a second pass begins anew"


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 0), (2, 2), (5, 0)])
def test_ranks_and_workers_share_the_rows_and_stay_in_step(
    stream: StreamedRows, world_size: int, num_workers: int
) -> None:
    whole = Counter(list_rows(stream))
    parts = [read(stream, rank, world_size, num_workers) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    found = Counter(row for part in parts for row in part)
    assert set(found) == set(whole)
    # Each file's last round is filled with its last row.
    assert sum((found - whole).values()) <= 2 * (world_size - 1)
    assert not whole - found
    assert parts == [read(stream, rank, world_size, num_workers) for rank in range(world_size)]


def test_the_ranks_of_a_running_group_are_found(stream: StreamedRows, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert stream._get_share() == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    stream.rank, stream.world_size = 2, 3
    assert stream._get_share() == (2, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_on_by_throwing_away_the_batches_it_had_seen(
    stream: StreamedRows, num_workers: int
) -> None:
    collator = ConversationCollator(stream.encoder.processor, "vicuna_v1", 4096)

    def load() -> DataLoader:
        return DataLoader(stream, 2, num_workers=num_workers, collate_fn=collator)

    whole = list(load())
    rest = iter(load())
    for _ in range(3):
        next(rest)
    for expected, found in zip(whole[3:], rest, strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture
def broken(tmp_path: Path, pictures: Path) -> str:
    """Of ten rows, 2 is no row, 4 and 10 have broken images, 7 has a missing one, 9 is no JSON."""
    save_broken_png(tmp_path / "broken.png")
    for picture in pictures.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    rows: list[Any] = [build_row(i) for i in range(10)]
    rows[1] = {"id": "bad", "conversations": say("Why?", " ")}
    rows[3]["image"] = rows[9]["image"] = "broken.png"
    rows[6]["image"] = "gone.png"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    lines = Path(path).read_text().splitlines()
    lines[8] = lines[8][:-5]
    Path(path).write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_every_bad_row_is_counted_once_and_ranks_stay_in_step(
    broken: str, processor: HyperLlavaProcessor, world_size: int, num_workers: int
) -> None:
    stream = open_small(broken, processor, on_bad_row="skip", streaming=True)
    counts, numbers, num_skipped = [], [], 0
    for rank in range(world_size):
        stream.rank, stream.world_size = rank, world_size
        rows = list(DataLoader(stream, batch_size=None, num_workers=num_workers))
        counts.append(len(rows))
        numbers += [row.number for row in rows]
        num_skipped += sum(row.num_skipped for row in rows)
    assert num_skipped == 5
    assert len(set(counts)) == 1
    assert set(numbers) == {1, 3, 5, 6, 8}


def test_skipped_rows_are_told_with_their_numbers(
    broken: str, processor: HyperLlavaProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    stream = open_small(broken, processor, on_bad_row="skip", streaming=True)
    with caplog.at_level(logging.WARNING):
        rows = list(stream)
    assert [row.number for row in rows] == [1, 3, 5, 5, 6, 8, 8]
    assert sum(row.num_skipped for row in rows) == 5
    assert "5 of 10 rows are bad and left out" in caplog.text
    for number in (2, 4, 7, 9, 10):
        assert f"rows.jsonl, row {number}" in caplog.text


def test_a_bad_row_stops_a_stream_where_it_is_met(
    broken: str, processor: HyperLlavaProcessor
) -> None:
    stream = iter(open_small(broken, processor, streaming=True))
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2 \(id 'bad'\): the answer"):
        list(stream)


def test_a_stream_of_bad_rows_alone_is_refused(
    tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    save_broken_png(tmp_path / "broken.png")
    row = {**build_row(0), "image": "broken.png"}
    path = write_rows(tmp_path / "rows.json", [row, row])
    stream = open_small(path, processor, on_bad_row="skip", streaming=True)
    with pytest.raises(ValueError, match=r"no row of .* can be trained on; the first.*row 1"):
        list(stream)
