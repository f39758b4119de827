"""hyperllava data check, as a user meets it."""

import json
from pathlib import Path

import pytest

from hyperllava_hf.cli.app import main
from tests.data.builders import build_mixed_rows, save_broken_png, save_pictures, say, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures, good.json and bad.jsonl."""
    save_pictures(tmp_path / "images")
    save_broken_png(tmp_path / "images" / "broken.png")
    rows = build_mixed_rows(9)
    write_rows(tmp_path / "good.json", rows)
    rows[3] = {"id": "x", "conversations": say("Why?", "")}
    rows[6] = {**rows[6], "image": "broken.png"}
    write_rows(tmp_path / "bad.jsonl", rows)
    return tmp_path


def test_a_good_file_is_summed_up_and_ends_with_0(
    folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "check", folder / "good.json", "--image-folder", folder / "images"]
    arguments += ["--model", tiny_checkpoint, "--workers", 2]
    assert main(list(map(str, arguments))) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    expected = "9 rows, 0 bad; of the others 3 text only, 3 with one image, 3 with several"
    assert first.endswith(expected)
    assert second.startswith("tokens: 50 % ")
    assert second.endswith("; 0 rows are cut")
    assert captured.err == ""


def test_bad_rows_are_named_and_end_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(folder / "images")
    files = [str(folder / name) for name in ("good.json", "bad.jsonl")]
    assert main(["data", "check", *files, "--image-folder", images]) == 2
    captured = capsys.readouterr()
    good, empty, broken, bad = captured.out.splitlines()
    assert "good.json: 9 rows, 0 bad" in good
    assert "bad.jsonl, row 4 (id 'x'): the answer in turn 1 is empty, expected text" in empty
    assert "bad.jsonl, row 7 (id 'row-6'): image 0 ('broken.png'): " in broken
    assert "bad.jsonl: 9 rows, 2 bad; of the others 3 text only, 1 with one image" in bad
    assert captured.err == "hyperllava: 2 of 18 rows are bad; each is named above\n"


def test_json_holds_every_bad_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / name) for name in ("bad.jsonl", "good.json", "gone.json")]
    arguments = ["--image-folder", str(folder / "images"), "--json", "--no-images"]
    assert main(["data", "check", *files, *arguments]) == 2
    captured = capsys.readouterr()
    bad, good, gone = json.loads(captured.out)
    assert (bad["is_good"], good["is_good"], gone["is_good"]) == (False, True, False)
    assert [(row["number"], row["id"], row["kind"]) for row in bad["bad_rows"]] == [
        (4, "x", "empty_answer")
    ]
    assert "no data file" in gone["error"]
    assert "1 of 18 rows are bad and 1 of 3 files cannot be read" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-length", "9"], "max_length 9 and no model"),
        (["--image-folder", "nowhere"], "the image folder 'nowhere' of"),
        (["--template", "v1"], "'v1' is not one of 'plain', 'vicuna_v1'"),
        (["--model", "nowhere"], "found no folder nowhere"),
        (["--workers", "-1"], "Invalid value for '--workers'"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(folder / "good.json"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_plain_template_refuses_what_stage_1_cannot_use(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(folder / "good.json")
    arguments = ["--image-folder", str(folder / "images"), "--template", "plain", "--json"]
    assert main(["data", "check", path, *arguments]) == 2
    (report,) = json.loads(capsys.readouterr().out)
    kinds = {row["number"]: row["kind"] for row in report["bad_rows"]}
    # Two turns of one question, or no image: rows 3, 5 and 9 are stage 1's.
    assert kinds == {2: "turn_order", 4: "turn_order", 5: "image_count", 6: "turn_order",
                     8: "turn_order"}  # fmt: skip
