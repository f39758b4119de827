"""Datasets in both of the Hub's forms, from disk: the rows of the same data as LLaVA JSON."""

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hyperllava_hf.data import DataSource, Rows
from hyperllava_hf.data.data_check import check_data
from hyperllava_hf.data.hub_rows import HubStore
from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import describe_row, list_rows, open_small, say, write_rows

NUM_ROWS = 7
QUESTIONS = [f"What is {i}?" for i in range(NUM_ROWS)]
ANSWERS = ["It is" + f" {i}" * (1 + i % 3) for i in range(NUM_ROWS)]
IMAGES = datasets.List(datasets.Image())


def load_picture(pictures: Path, number: int) -> Image.Image:
    # A copy has no file name, which datasets would keep in place of the pixels.
    return Image.open(pictures / f"{number % 4}.png").copy()


def build_vsft(pictures: Path) -> datasets.Dataset:
    """As HuggingFaceH4/llava-instruct-mix-vsft: typed parts, images by index."""
    rows = []
    for i in range(NUM_ROWS):
        question = [
            {"index": None, "text": QUESTIONS[i] + "\n", "type": "text"},
            {"index": 0, "text": None, "type": "image"},
        ]
        answer = [{"index": None, "text": ANSWERS[i], "type": "text"}]
        messages = [
            {"content": question, "role": "user"},
            {"content": answer, "role": "assistant"},
        ]
        rows.append({"messages": messages, "images": [load_picture(pictures, i)]})
    return datasets.Dataset.from_list(rows, features=describe_features(rows[0]))


def build_completions(pictures: Path) -> datasets.Dataset:
    """As trl-lib/llava-instruct-mix: strings without marks, prompt and completion apart."""
    rows = [
        {
            "images": [load_picture(pictures, i)],
            "prompt": [{"content": QUESTIONS[i], "role": "user"}],
            "completion": [{"content": ANSWERS[i], "role": "assistant"}],
        }
        for i in range(NUM_ROWS)
    ]
    return datasets.Dataset.from_list(rows, features=describe_features(rows[0]))


def build_single(pictures: Path) -> datasets.Dataset:
    """LLaVA's turns with one image a row."""
    rows = [
        {
            "id": str(i),
            "image": load_picture(pictures, i),
            "conversations": say(f"<image>\n{QUESTIONS[i]}", ANSWERS[i]),
        }
        for i in range(NUM_ROWS)
    ]
    features = datasets.Dataset.from_list([{**rows[0], "image": None}]).features
    features = datasets.Features(features | {"image": datasets.Image()})
    return datasets.Dataset.from_list(rows, features=features)


def describe_features(row: dict) -> datasets.Features:
    features = datasets.Dataset.from_list([{**row, "images": []}]).features
    return datasets.Features(features | {"images": IMAGES})


FORMS = {"vsft": build_vsft, "completions": build_completions, "single": build_single}


def save(data: datasets.Dataset, way: str, folder: Path) -> str:
    """Save a dataset in one of the ways people have them on disk."""
    folder.mkdir()
    if way == "saved":
        data.save_to_disk(folder / "data")
    elif way == "splits":
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder)
        return str(folder)
    elif way == "file":
        data.to_parquet(folder / "data.parquet")
        return str(folder / "data.parquet")
    else:
        (folder / "data").mkdir()
        for part, start in enumerate((0, 3)):
            end = (3, NUM_ROWS)[part]
            name = f"train-{part:05}-of-00002.parquet"
            data.select(range(start, end)).to_parquet(folder / "data" / name)
    return str(folder / "data")


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def expected(
    pictures: Path, processor: HyperLlavaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Rows:
    """The same data as LLaVA JSON."""
    rows = [
        {"image": f"{i % 4}.png", "conversations": say(f"<image>\n{QUESTIONS[i]}", ANSWERS[i])}
        for i in range(NUM_ROWS)
    ]
    path = write_rows(tmp_path_factory.mktemp("json") / "rows.json", rows)
    return open_small(path, processor, image_folder=str(pictures))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("form", "way"),
    [
        ("vsft", "saved"), ("vsft", "folder"), ("completions", "folder"), ("completions", "splits"),
        ("single", "file"),
    ],
)  # fmt: skip
def test_a_dataset_gives_the_rows_of_the_same_data_as_json(
    form: str, way: str, streaming: bool, expected: Rows, pictures: Path, tmp_path: Path,
    processor: HyperLlavaProcessor,
) -> None:  # fmt: skip
    path = save(FORMS[form](pictures), way, tmp_path / "set")
    rows = open_small(path, processor, streaming=streaming)
    assert list_rows(rows) == list_rows(expected)
    if isinstance(rows, Rows):
        assert rows.lengths == expected.lengths


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_share_the_files_of_a_streamed_dataset(
    num_workers: int, expected: Rows, pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    path = save(build_vsft(pictures), "folder", tmp_path / "set")
    rows = open_small(path, processor, streaming=True)
    loader = DataLoader(rows, batch_size=None, num_workers=num_workers)
    assert sorted(map(describe_row, loader)) == sorted(list_rows(expected))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_streamed_dataset(
    world_size: int, expected: Rows, pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    rows = open_small(
        save(build_vsft(pictures), "folder", tmp_path / "set"), processor, streaming=True
    )
    parts = []
    for rank in range(world_size):
        rows.rank, rows.world_size = rank, world_size
        parts.append(list_rows(rows))
    assert len({len(part) for part in parts}) == 1
    assert {row for part in parts for row in part} == set(list_rows(expected))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_picture_of_a_dataset_is_a_bad_row(
    streaming: bool, pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    data = build_vsft(pictures)
    good = data.with_format("arrow")[:].column("images").to_pylist()
    good[2][0]["bytes"] = good[2][0]["bytes"][:60]
    good[4] = []
    data = data.remove_columns("images").add_column("images", good).cast_column("images", IMAGES)
    path = save(data, "folder", tmp_path / "set")
    rows = open_small(path, processor, on_bad_row="skip", streaming=streaming)
    found = list(rows) if streaming else [rows[i] for i in range(len(rows))]
    assert [row.number for row in found] == [1, 2, 4, 4, 6, 7]
    assert sum(row.num_skipped for row in found) == 1 + streaming
    report = check_data(DataSource(path))
    assert [(row.number, row.kind) for row in report.bad_rows] == [
        (3, "broken_image"),
        (5, "image_count"),
    ]


def test_paths_of_a_dataset_are_held_against_the_image_folder(
    pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    turns = say("<image>\nWhat?", "x")
    names = ["0.png", "../secret.png", "gone.png"]
    shutil.copy(pictures / "0.png", pictures.parent / "secret.png")
    for column, values in (("image", names), ("images", [[name] for name in names])):
        data = datasets.Dataset.from_list([{column: v, "conversations": turns} for v in values])
        path = save(data, "file", tmp_path / column)
        report = check_data(DataSource(path, image_folder=str(pictures)))
        assert [(row.number, row.kind) for row in report.bad_rows] == [
            (2, "image_path"),
            (3, "missing_image"),
        ]
        rows = open_small(path, processor, on_bad_row="skip", image_folder=str(pictures))
        assert (len(rows), rows.num_bad_rows) == (1, 2)


def test_a_picture_that_a_dataset_refers_to_is_opened_where_it_lies(
    pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    lines = []
    for number in range(3):
        shutil.copy(pictures / f"{number}.png", folder)
        turns = say("<image>\nWhat?", str(number))
        lines.append(json.dumps({"file_name": f"{number}.png", "conversations": turns}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    rows = open_small(str(folder), processor, on_bad_row="skip")
    expected = list_rows(rows)
    assert list_rows(open_small(str(folder), processor, streaming=True)) == expected
    assert len({row[3] for row in expected}) == 3
    (folder / "1.png").unlink()
    found = [rows[i] for i in range(3)]
    assert [(row.number, row.num_skipped) for row in found] == [(1, 0), (3, 1), (3, 0)]


def test_pictures_within_an_archive_are_streamed_out_of_it(
    expected: Rows, pictures: Path, tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "train.zip", "w") as archive:
        lines = []
        for i in range(4):
            archive.write(pictures / f"{i}.png", f"{i}.png")
            turns = say(f"<image>\n{QUESTIONS[i]}", ANSWERS[i])
            lines.append(json.dumps({"file_name": f"{i}.png", "conversations": turns}))
        archive.writestr("metadata.jsonl", "\n".join(lines))
    rows = open_small(str(tmp_path / "set"), processor, streaming=True)
    assert list_rows(rows) == list_rows(expected)[:4]


def test_contents_of_mixed_kinds_are_read_as_they_were_written(
    tmp_path: Path, processor: HyperLlavaProcessor
) -> None:
    (tmp_path / "set").mkdir()
    parts = [{"type": "text", "text": 'It is "7".'}]
    rows = [
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": x}]}
        for x in ("So.", parts)
    ]
    expected = list_rows(open_small(write_rows(tmp_path / "rows.json", rows), processor))
    write_rows(tmp_path / "set" / "rows.jsonl", rows)
    for streaming in (False, True):
        opened = open_small(str(tmp_path / "set"), processor, streaming=streaming)
        assert list_rows(opened) == expected


BAD_DATASETS: dict[str, tuple[Any, str]] = {
    "gone/set/deep": (None, "no file or folder 'gone/set/deep', and it is no id of a dataset"),
    "notes.txt": ("hello", "is a file of an unknown kind; expected .json"),
    "data.parquet": ("hello", "cannot be read by datasets"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_what_is_no_dataset_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, pattern = BAD_DATASETS[name]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((OSError, ValueError), match=pattern):
        HubStore(DataSource(name))


def test_a_dataset_without_conversations_or_split_is_refused(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"text": "a"}])
    path = save(data, "splits", tmp_path / "set")
    with pytest.raises(ValueError, match=r"columns \['text'\], expected 'conversations'"):
        HubStore(DataSource(path))
    with pytest.raises(ValueError, match="no split 'val', expected one of test, train"):
        HubStore(DataSource(path, split="val"))


def test_without_datasets_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the datasets library.*pip install datasets"):
        HubStore(DataSource("user/set"))
    path = write_rows(tmp_path / "rows.json", [{"conversations": say("a", "b")}])
    assert check_data(DataSource(path)).is_good
    assert "pip install datasets" in str(check_data(DataSource("user/set")).error)
