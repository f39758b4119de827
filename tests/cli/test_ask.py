"""hyperllava ask: arguments, answers in both forms, chats, and what is refused."""

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperllava_hf.chat import (
    CallbackStreamer,
    Chat,
    Sampling,
    choose_device,
    split_images_and_question,
)
from hyperllava_hf.cli.app import main

PICTURES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ask(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run `hyperllava ask` on the tiny checkpoint and return its stdout and stderr."""

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        arguments = ["ask", *map(str, words), "--model", str(tiny_checkpoint)]
        assert main([*arguments, "--max-new-tokens", "6"]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_answer_matches_the_library(
    ask: Callable[..., tuple[str, str]], tiny_checkpoint: Path, picture: Path
) -> None:
    out, err = ask(picture, "What?")
    chat = Chat.load(str(tiny_checkpoint), [str(picture)])
    assert out.strip() == chat.ask("What?", Sampling(max_new_tokens=6)).text
    assert "The answer was cut after 6 tokens" in err


def test_pieces_of_a_streamed_answer_make_up_the_answer(
    tiny_checkpoint: Path, picture: Path
) -> None:
    pieces: list[str] = []
    chat = Chat.load(str(tiny_checkpoint), [str(picture)])
    answer = chat.ask("What?", Sampling(max_new_tokens=9), pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert answer.new_tokens == 9


def test_stream_leaves_out_the_space_before_the_first_word() -> None:
    pieces: list[str] = []
    streamer = CallbackStreamer(None, pieces.append)
    for text in ("", " ", " A red", " 5."):
        streamer.on_finalized_text(text)
    assert pieces == ["A red", " 5."]


def test_json_is_one_object_a_line(ask: Callable[..., tuple[str, str]], picture: Path) -> None:
    out, _ = ask(picture, picture, "What?", "--json")
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert answer["question"] == "What?"
    assert set(answer) == {"question", "text", "new_tokens", "complete"}


def test_text_only_question_is_answered(ask: Callable[..., tuple[str, str]]) -> None:
    out, _ = ask("Hello?", "--json")
    assert json.loads(out)["question"] == "Hello?"


def test_interactive_chat_reads_one_question_a_line(
    ask: Callable[..., tuple[str, str]], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\n\n  Two?\n"))
    out, err = ask(picture, "--interactive", "--json")
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["One?", "Two?"]
    assert "> " not in err  # the prompt is for people


def test_interactive_chat_asks_the_question_of_the_command_line_first(
    ask: Callable[..., tuple[str, str]], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Two?\n"))
    out, _ = ask(picture, "One?", "-i", "--json")
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["One?", "Two?"]


def test_chat_sends_its_history_and_the_images_once(tiny_checkpoint: Path, picture: Path) -> None:
    chat = Chat.load(str(tiny_checkpoint), [str(picture)] * 2)
    for question in ("One?", "Two?"):
        chat.ask(question, Sampling(max_new_tokens=2))
    kinds = [[part["type"] for part in message["content"]] for message in chat.messages]
    assert kinds == [["image", "image", "text"], ["text"], ["text"], ["text"]]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_sampling_repeats_with_its_seed(ask: Callable[..., tuple[str, str]], picture: Path) -> None:
    options = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.95, "--json")
    outs = [ask(picture, "What?", *options, "--seed", seed)[0] for seed in (1, 1, 2, 3)]
    assert outs[0] == outs[1]
    assert len(set(outs)) > 1


@pytest.mark.parametrize(
    ("words", "optional", "expected"),
    [
        (["What?"], False, ([], "What?")),
        (["PICTURE", "What?"], False, (["PICTURE"], "What?")),
        (["PICTURE", "http://a/b.png", "What?"], True, (["PICTURE", "http://a/b.png"], "What?")),
        (["PICTURE"], True, (["PICTURE"], None)),
    ],
)
def test_words_are_images_then_the_question(
    words: list[str], optional: bool, expected: tuple[list[str], str | None], picture: Path
) -> None:
    def fill(names: list[str]) -> list[str]:
        return [str(picture) if name == "PICTURE" else name for name in names]

    found = split_images_and_question(fill(words), optional)
    assert found == (fill(expected[0]), expected[1])


def test_missing_question_is_refused(ask: Callable[..., tuple[str, str]], picture: Path) -> None:
    _, err = ask(picture, picture, code=2)
    assert "found 2 image(s) and no question; put the question last" in err


@pytest.mark.parametrize(
    "words", [["nowhere.png", "What?"], ["nowhere.png"], ["nowhere.png", "-i"]]
)
def test_missing_image_is_refused(ask: Callable[..., tuple[str, str]], words: list[str]) -> None:
    _, err = ask(*words, code=2)
    assert "found no file 'nowhere.png'; expected images, then the question in quotes" in err


def test_file_that_is_no_image_is_refused_in_one_line(
    ask: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    out, err = ask(tmp_path / "notes.png", "What?", code=2)
    assert out == ""
    assert err.count("\n") == 1
    assert "notes.png" in err


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cuda:x", "cpu:0"])
def test_device_that_the_machine_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"found no device '{name}'; this machine has .*cpu"):
        choose_device(name)


def test_device_auto_is_one_that_is_accepted() -> None:
    assert choose_device(choose_device("auto")) == choose_device("auto")
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "found no config.json"),
        ("{", "is no JSON"),
        ('{"model_type": "bert"}', "has model_type 'bert'; expected a checkpoint of 'hyperllava'"),
        ('{"model_type": "llava"}', "is a LLaVA, which has no experts"),
    ],
)
def test_folder_that_is_no_checkpoint_is_refused(
    config: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main(["ask", "What?", "--model", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "found no folder ./nowhere; expected a folder or a Hub id"),
        ("nowhere", "found no folder nowhere; expected a folder or a Hub id such as user/name"),
        ("a/b/c", "found no folder a/b/c; expected a folder or a Hub id"),
        (__file__, "is a file; expected a checkpoint's folder or a Hub id"),
    ],
)
def test_name_that_can_be_no_checkpoint_is_refused(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "What?", "--model", name]) == 2
    assert message in capsys.readouterr().err


def test_answer_alone_is_on_stdout(
    run_process: Callable[..., subprocess.CompletedProcess[str]],
    tiny_checkpoint: Path,
    picture: Path,
) -> None:
    options = ("--model", tiny_checkpoint, "--max-new-tokens", 3, "--json")
    result = run_process("ask", picture, "What?", *options)
    assert result.returncode == 0
    assert json.loads(result.stdout)["new_tokens"] == 3


def test_bundled_checkpoint_is_the_default_and_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = sorted(PICTURES.glob("*.png"))[0]
    assert main(["ask", str(picture), "How many digits are there?", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["complete"]
    assert answer["text"] in {"1", "2", "3", "4"}
