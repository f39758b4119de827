"""hyperllava inspect: the printed report, its JSON, and its picture."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hyperllava_hf.cli.app import main
from tests.tiny_checkpoint import save_tiny_checkpoint


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run `hyperllava inspect` and return its stdout and stderr."""

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        assert main(["inspect", *map(str, words)]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_report_names_blocks_guidance_scope_and_source(
    inspect: Callable[..., tuple[str, str]], tiny_checkpoint: Path
) -> None:
    out, err = inspect(tiny_checkpoint)
    assert err == ""
    rows = (
        "in the projector: first",
        "in blocks 1 (1 of 2)",
        "guided",
        "the hidden state after 1 of 2 blocks",
        "token",
        "m = 6, r = 4",
        "F32",
    )
    assert [row for row in rows if row not in out] == []
    assert "pooling" not in out  # not read under scope "token"


def test_json_holds_what_the_report_shows(
    inspect: Callable[..., tuple[str, str]], tiny_checkpoint: Path
) -> None:
    content = json.loads(inspect(tiny_checkpoint, "--json")[0])
    assert content["language_expert_blocks"] == [1]
    assert content["parameters"]["visual expert"] > 0
    assert content["shifts"] is None


def test_embedding_guidance_is_noted(
    inspect: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    folder = save_tiny_checkpoint(tmp_path, language_expert_layers="all")
    out, _ = inspect(folder)
    assert "the merged input embeddings" in out
    assert "Note: Expert block 0 lies before guidance block 1" in out


def test_pooling_is_shown_under_scope_prompt(
    inspect: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    fields = {"language_guidance_scope": "prompt", "language_guidance_pooling": "text"}
    out, _ = inspect(save_tiny_checkpoint(tmp_path, **fields))
    assert re.search(r"scope\W+prompt", out)
    assert re.search(r"pooling\W+text", out)


def test_question_adds_a_row_an_expert(
    inspect: Callable[..., tuple[str, str]], tiny_checkpoint: Path, picture: Path
) -> None:
    options = ("--image", picture, "--question", "What?")
    out, _ = inspect(tiny_checkpoint, *options)
    assert "visual first" in out
    assert "language 1" in out
    shifts = json.loads(inspect(tiny_checkpoint, *options, "--json")[0])["shifts"]
    assert [shift["expert"] for shift in shifts] == ["visual first", "language 1"]


def test_plot_writes_a_picture(
    inspect: Callable[..., tuple[str, str]], tiny_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "shift.png"
    _, err = inspect(tiny_checkpoint, "--image", picture, "--question", "What?", "--plot", target)
    assert f"Wrote {target}" in err
    with Image.open(target) as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("RGB").getcolors(maxcolors=2**20)) > 3


@pytest.mark.parametrize(
    ("target", "message"),
    [("shift.jpg", "does not end in .png"), ("nowhere/shift.png", "found no folder")],
)
def test_plot_target_is_checked(
    inspect: Callable[..., tuple[str, str]],
    tiny_checkpoint: Path,
    tmp_path: Path,
    target: str,
    message: str,
) -> None:
    options = ("--question", "What?", "--plot", tmp_path / target)
    assert message in inspect(tiny_checkpoint, *options, code=2)[1]


def test_bundled_checkpoint_is_the_default(inspect: Callable[..., tuple[str, str]]) -> None:
    content = json.loads(inspect("--json")[0])
    assert content["expert_source"] == "guided"
    assert content["notes"] == []
