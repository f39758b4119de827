"""Ctrl-C, kill -9 and two converters at once: a destination is whole, or as it was."""

import re
import signal
import time

import pytest

from hyperllava_hf.conversion import convert
from tests.conversion.command_line import TIMEOUT, Child, run_child, spell
from tests.conversion.layout_writers import write_original
from tests.conversion.results import assert_same_tensors, hash_others, hash_tree, list_names
from tests.conversion.weight_files import read_weights

WRITER = "hyperllava_hf.conversion.shard_writer"
# Where a run is stopped: a function and at which of its calls.
PLACES = {
    "first rows": (f"{WRITER}:raise_if_nonfinite", 1),
    "rows of the second shard": (f"{WRITER}:raise_if_nonfinite", 40),
    "before the index": (f"{WRITER}:write_text", 1),
    "before the manifest": ("hyperllava_hf.conversion.convert:write_manifest", 1),
    "before the folder appears": ("pathlib:Path.rename", 1),
}


def make_words(tmp_path, **options):
    """A source, and the command line that converts it into shards."""
    source = write_original(tmp_path / "source", kind="safetensors")
    options = {"max_shard_size": "60KB", "verify": False, **options}
    return source, spell(source.path, tmp_path / "result", **options)


def expect_whole(folder, source):
    """The result is complete: every name of its index is there, with the known weights."""
    assert (folder / "model.safetensors.index.json").is_file()
    assert (folder / "conversion.json").is_file()
    base = {n: t for n, t in read_weights(folder).items() if "_expert." not in n}
    assert_same_tensors(base, source.expected)


@pytest.mark.parametrize("name", PLACES)
def test_ctrl_c_leaves_nothing(name, tmp_path, streams):
    place, count = PLACES[name]
    _, words = make_words(tmp_path)
    before = hash_tree(tmp_path)
    code, out, err = run_child("stop_at", streams, int(signal.SIGINT), place, count, *words)
    assert (code, out, err) == (130, "", "hyperllava: interrupted\n")
    assert hash_tree(tmp_path) == before


@pytest.mark.parametrize("name", PLACES)
def test_rerun_after_kill_is_whole(name, tmp_path, streams):
    place, count = PLACES[name]
    source, words = make_words(tmp_path)
    code, *_ = run_child("stop_at", streams, int(signal.SIGKILL), place, count, *words)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "result").exists()
    # What is left has a name of its own, which the next run takes over.
    assert set(list_names(tmp_path)) <= {
        *("source", "source-clip", ".result.converting", ".result.lock"),
    }
    convert(source.path, tmp_path / "result", max_shard_size="60KB", verify=False)
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_overwrite_keeps_the_old_folder(signum, code, tmp_path, streams):
    source, words = make_words(tmp_path, overwrite=True)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    place, count = PLACES["before the manifest"]
    assert run_child("stop_at", streams, int(signum), place, count, *words)[0] == code
    assert list_names(tmp_path / "result") == ["notes.txt"]
    convert(source.path, tmp_path / "result", overwrite=True, max_shard_size="60KB", verify=False)
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


def test_kill_between_the_two_renames_loses_neither_folder(tmp_path, streams):
    source, words = make_words(tmp_path, overwrite=True)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    code, *_ = run_child("stop_at", streams, int(signal.SIGKILL), "pathlib:Path.rename", 2, *words)
    assert code == -signal.SIGKILL
    assert (tmp_path / ".result.replaced" / "notes.txt").read_text() == "mine"
    # Without --overwrite the next run finds the old folder where it was, and refuses.
    with pytest.raises(ValueError, match="not empty"):
        convert(source.path, tmp_path / "result")
    assert list_names(tmp_path / "result") == ["notes.txt"]
    convert(source.path, tmp_path / "result", overwrite=True, max_shard_size="60KB", verify=False)
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


def test_ctrl_c_between_the_two_renames_loses_neither_folder(tmp_path, streams):
    source, words = make_words(tmp_path, overwrite=True)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    code, *_ = run_child("stop_at", streams, int(signal.SIGINT), "pathlib:Path.rename", 2, *words)
    assert code == 130
    places = [tmp_path / "result", tmp_path / ".result.replaced"]
    held = [place for place in places if place.exists()]
    assert any((place / "notes.txt").exists() for place in held) or len(held) == 1
    convert(source.path, tmp_path / "result", overwrite=True, max_shard_size="60KB", verify=False)
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_second_converter_to_one_destination_is_refused(overwrite, tmp_path, streams):
    source, words = make_words(tmp_path, overwrite=overwrite)
    gate = tmp_path / "source-clip" / "gate"
    place, count = PLACES["rows of the second shard"]
    first = Child("stop_at", streams, gate, place, count, *words)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not gate.exists():
            assert first.is_running(), first.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = hash_others(tmp_path, "result")
        with pytest.raises(ValueError, match=re.compile("another process.*result", re.DOTALL)):
            convert(source.path, tmp_path / "result", overwrite=overwrite)
        assert hash_others(tmp_path, "result") == before
        gate.unlink()
        code, _, err = first.finish()
    finally:
        gate.unlink(missing_ok=True)
        first.finish()
    assert code == 0, err
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


def test_lock_of_a_killed_converter_does_not_block(tmp_path):
    source, _ = make_words(tmp_path)
    (tmp_path / ".result.lock").touch()
    (tmp_path / ".result.converting").mkdir()
    (tmp_path / ".result.converting" / "model.safetensors").write_bytes(b"half")
    convert(source.path, tmp_path / "result", max_shard_size="60KB", verify=False)
    expect_whole(tmp_path / "result", source)
    assert list_names(tmp_path) == ["result", "source", "source-clip"]
