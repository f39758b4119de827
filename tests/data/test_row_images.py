"""Images: found in their folder and nowhere else, and decoded or refused."""

import io
import os
import struct
import zlib
from pathlib import Path

import pytest

from hyperllava_hf.data import DataSource
from hyperllava_hf.data.row_faults import RowFault
from hyperllava_hf.data.row_images import check_image_places, load_row_images
from tests.data.builders import build_red, save_broken_png


@pytest.fixture
def source(pictures: Path) -> DataSource:
    """A file whose images lie in the folder of pictures."""
    return DataSource(str(pictures.parent / "rows.json"), image_folder=str(pictures))


def refuse(image: object, source: DataSource, pattern: str) -> str:
    with pytest.raises(RowFault, match=pattern) as caught:
        load_row_images([image], source)
    return caught.value.kind


@pytest.mark.parametrize(
    "path",
    ["0.png", "./0.png", "deep/../0.png", "deep//0.jpg", "../pictures0/0.png"],
)
def test_a_path_that_stays_in_the_folder_is_read(path: str, pictures: Path) -> None:
    path = path.replace("pictures0", pictures.name)
    source = DataSource("rows.json", image_folder=str(pictures))
    check_image_places([path], source)
    assert load_row_images([path], source)[0].mode == "RGB"


@pytest.mark.parametrize("folder", [".", "./", "deep/..", "../here", "deep"])
def test_a_folder_may_be_named_in_any_way(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    build_red().save(Path(folder) / "0.png")
    build_red().save("../secret.png")
    source = DataSource("rows.json", image_folder=folder)
    assert load_row_images(["0.png"], source)
    assert refuse("../../secret.png", source, "leads out of") == "image_path"


OUTSIDE = ["../secret.png", "deep/../../secret.png", "..", "../pictures-2/0.png", "/etc/hostname"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_the_folder_is_refused_though_a_file_is_there(
    path: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "pictures-2").mkdir()
    for name in ("secret.png", "pictures-2/0.png"):
        build_red().save(tmp_path / name)
    source = DataSource("rows.json", image_folder=str(folder))
    assert refuse(path, source, "leads out of|is absolute") == "image_path"
    with pytest.raises(RowFault):
        check_image_places([path], source)


def test_absolute_paths_are_read_only_where_no_folder_is_named(pictures: Path) -> None:
    path = str(pictures / "0.png")
    assert load_row_images([path], DataSource("rows.json"))
    source = DataSource("rows.json", image_folder=str(pictures))
    assert refuse(path, source, "is absolute, expected one relative") == "image_path"


def test_without_a_folder_paths_are_relative_to_the_file(pictures: Path) -> None:
    source = DataSource(str(pictures / "rows.jsonl"))
    assert load_row_images(["deep/0.jpg"], source)[0].size == (9, 9)
    assert refuse("../x.png", source, "leads out of") == "image_path"


@pytest.mark.parametrize(
    "path",
    [
        "gone.png",
        "deep",
        ".",
        "0.png/x",
        "a\0b.png",
        "x" * 5000,
        "https://example.com/a.png",
        "file:///etc/hostname",
        "data:image/png;base64,iVBORw0KGgo=",
        "~/a.png",
    ],
)
def test_what_names_no_file_is_a_missing_image_and_nothing_is_fetched(
    path: str, source: DataSource
) -> None:
    assert refuse(path, source, "there is no image|is no file") == "missing_image"
    with pytest.raises(RowFault):
        check_image_places([path], source)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    source = DataSource("rows.json", image_folder=str(tmp_path))
    assert refuse("pipe.png", source, "is no file") == "missing_image"


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**40)
    source = DataSource("rows.json", image_folder=str(tmp_path))
    assert refuse("large.png", source, "has 1,099,511,627,776 bytes") == "broken_image"


def test_links_in_the_folder_are_followed(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "coco").symlink_to(pictures)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = DataSource("rows.json", image_folder=str(tmp_path))
    assert load_row_images(["coco/0.png"], source)
    assert refuse("gone.png", source, "there is no image") == "missing_image"


def write_bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(60_000))), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


BROKEN = {
    "truncated": save_broken_png,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a page": lambda path: path.write_text("<html>404</html>"),
    "a program for Ghostscript": lambda path: path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    ),
    "a bomb": write_bomb,
    "a header alone": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_decoded_is_a_broken_image(case: str, tmp_path: Path) -> None:
    BROKEN[case](tmp_path / "x.png")
    source = DataSource("rows.json", image_folder=str(tmp_path))
    check_image_places(["x.png"], source)
    assert refuse("x.png", source, r"image 0 \('x\.png'\): .*expected|image 0") == "broken_image"
    data = (tmp_path / "x.png").read_bytes()
    if data:
        assert refuse(data, source, "image 0: ") == "broken_image"


def test_pictures_bytes_and_records_need_no_folder(source: DataSource) -> None:
    buffer = io.BytesIO()
    build_red().save(buffer, format="PNG")
    data = buffer.getvalue()
    record = {"bytes": data, "path": "../nowhere.png"}
    images = load_row_images([build_red(), data, record, {"bytes": None, "path": "0.png"}], source)
    assert [image.getpixel((0, 0)) for image in images[:3]] == [(200, 20, 20)] * 3
    assert images[3].size == (20, 31)


def test_a_folder_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the image folder .*gone.* is no folder"):
        DataSource("rows.json", image_folder=str(tmp_path / "gone"))


def test_an_unknown_form_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"found the format 'sharegpt'.*llava, messages"):
        DataSource("rows.json", format="sharegpt")
