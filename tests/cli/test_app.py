"""What all commands share: exit codes, one-line errors, separate streams, a quick --help."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperllava_hf import __version__
from hyperllava_hf.cli import app
from hyperllava_hf.cli.app import COMMANDS, main
from tests.cli.golden_options import list_options

GOLDEN_OPTIONS = Path(__file__).with_name("golden_options.txt")
HELP_WITHOUT_TORCH = """
import sys
from hyperllava_hf.cli import main
code = main(sys.argv[1:])
loaded = [name for name in ("torch", "transformers", "PIL", "numpy") if name in sys.modules]
sys.exit(f"imported {loaded}" if loaded else code)
"""


def test_options_match_the_golden_list() -> None:
    assert list_options() == GOLDEN_OPTIONS.read_text(encoding="ascii").splitlines()


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    command = [sys.executable, "-c", HELP_WITHOUT_TORCH, *words, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: hyperllava" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    examples = capsys.readouterr().out.split("Examples:")[1]
    assert examples.count(f"hyperllava {name} ") == 2


def test_version_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("hyperllava 0.")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command. See 'hyperllava --help'."),
        (["shout"], "No such command 'shout'. See 'hyperllava --help'."),
        (["ask"], "Missing argument 'QUESTION'. See 'hyperllava ask --help'."),
        (["inspect", "--plot", "x.png"], "--image and --plot need a --question"),
        (["ask", "What?", "--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["ask", "What?", "--dtype", "int3"], "Invalid value for '--dtype'"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_cuts_no_word_at_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    usage, *lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "..." in line or "\N{HORIZONTAL ELLIPSIS}" in line]
    assert len(usage) <= 80


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (ValueError("found a\n  cat"), 2, "hyperllava: found a cat"),
        (FileNotFoundError("no such shelf"), 2, "hyperllava: no such shelf"),
        (torch.OutOfMemoryError("4 GiB wanted"), 2, "hyperllava: out of memory: 4 GiB wanted"),
        (RuntimeError("DefaultCPUAllocator: no"), 2, "hyperllava: out of memory: DefaultCPUA"),
        (ImportError("pip install flash-attn"), 2, "hyperllava: pip install flash-attn"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "hyperllava: this is a bug"),
        (KeyboardInterrupt(), 130, "hyperllava: interrupted"),
        (RuntimeError("cogs"), 1, "hyperllava: this is a bug in hyperllava_hf"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    last_line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(app, "run", fail)
    assert main([]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(last_line)
    assert ("Traceback" in captured.err) == (code == 1)


def test_closed_stdout_is_no_error() -> None:
    # The reading end is gone before a word is printed, as with a pager that was quit.
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hyperllava_hf.cli", "ask", "--help"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("module", ["hyperllava_hf", "hyperllava_hf.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"hyperllava {__version__}\n")


def test_interrupt_ends_an_interactive_chat_with_130(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "hyperllava_hf.cli", "ask", "Hi", "-i"]
    command += ["--model", str(tiny_checkpoint), "--max-new-tokens", "2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests run in the background, children would inherit that Ctrl-C is ignored.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, text=True, bufsize=1, preexec_fn=listen, **pipes) as child:
        child.stdout.readline()  # the first answer is there, so it now waits for a question
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        try:
            _, error = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    assert child.returncode == 130
    assert error.splitlines()[-1] == "hyperllava: interrupted"


def test_streams_of_a_process_are_apart(
    run_process: Callable[..., subprocess.CompletedProcess[str]], tiny_checkpoint: Path
) -> None:
    result = run_process("inspect", tiny_checkpoint)
    assert (result.returncode, result.stderr) == (0, "")
    assert "whole model" in result.stdout
