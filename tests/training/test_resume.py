"""Runs that are interrupted and go on: bit for bit what an uninterrupted run gives."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperllava_hf.training import runs
from hyperllava_hf.training.run_checkpoints import STAGING, list_checkpoints
from hyperllava_hf.training.runs import REPORT
from hyperllava_hf.training.trainer import HyperLlavaTrainer
from tests.training.tiny_runs import build_tiny_settings, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def run_child(folder, settings, output, kill=None, resume=False):
    """Run `train_job` and wait for it."""
    run = {"settings": settings.to_dict(), "output": str(output), "resume": resume}
    job = {"runs": [run], **({"kill": kill} if kill else {})}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    command = [sys.executable, "-m", "tests.training.train_job", str(folder / "job.json")]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)


def read_weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def read_report(folder):
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def assert_same_run(first, second):
    """Weights and logged losses of two runs are the same bits."""
    assert read_report(first)["losses"] == read_report(second)["losses"]
    weights, others = read_weights(first), read_weights(second)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def test_killed_twice_and_resumed_equals_uninterrupted(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Each run in a new process: what other tests left in this one cannot tell them apart.
    child = run_child(tmp_path, settings, whole)
    assert child.returncode == 0, child.stderr
    assert [step for step, _ in read_report(whole)["losses"]] == [1, 2, 3, 4, 5, 6]
    start = load_file(tiny_checkpoint / "model.safetensors")
    assert not torch.equal(
        read_weights(whole)["lm_head.weight"], start["lm_head.weight"]
    )  # something was trained

    in_step = {"method": "training_step", "step": 3}
    assert run_child(tmp_path, settings, killed, kill=in_step).returncode == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(killed)] == ["checkpoint-2"]

    # In the middle of writing: weights are there, optimiser and random state are not.
    in_writing = {"method": "_save_optimizer_and_scheduler", "step": 4}
    child = run_child(tmp_path, settings, killed, kill=in_writing, resume=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in list_checkpoints(killed)] == ["checkpoint-2"]
    assert (killed / STAGING / "checkpoint-4" / "model.safetensors").is_file()

    child = run_child(tmp_path, settings, killed, resume=True)
    assert child.returncode == 0, child.stderr
    assert read_report(killed)["resumed_from"] == "checkpoint-2"
    said = child.stdout.splitlines()
    assert any("resuming from" in line and "checkpoint-2" in line for line in said)
    assert any("removed checkpoint-4" in line for line in said)
    assert not (killed / STAGING).exists()
    assert_same_run(killed, whole)


class Interruption(Exception):
    pass


def interrupt_at(monkeypatch, step):
    """Raise at the first batch after so many steps."""
    original = HyperLlavaTrainer.training_step

    def call(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Interruption
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HyperLlavaTrainer, "training_step", call)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"language_model": "frozen", "save_only": "experts"}, 3),
        ({"language_model": "lora", "lora_rank": 2, "lora_dropout": 0.3, "merge": True}, 5),
        (
            {
                "stage": "align",
                "language_model": "frozen",
                "template": "vicuna_v1",
                "group_by_modality_length": False,
            },
            4,
        ),
    ],
    ids=["experts", "lora", "align"],
)
def test_interrupted_equals_uninterrupted(
    tiny_checkpoint, rows, tmp_path, monkeypatch, changes, step
):
    """Second epoch, within it and at its beginning; dropout draws from torch's own state."""
    settings = build_tiny_settings(tiny_checkpoint, rows, **changes)
    runs.train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Interruption):
            runs.train(settings, tmp_path / "stopped")
    torch.manual_seed(12345)
    runs.train(settings, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_run_in_the_way_is_named(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, max_steps=2)
    runs.train(settings, tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already \(checkpoint-2\); go on with --res"):
        runs.train(settings, tmp_path)


def test_resume_of_another_run_names_every_difference(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, max_steps=2)
    runs.train(settings, tmp_path / "run")
    other_rows = write_rows(tmp_path / "rows", (1, 1, 0))
    other_model = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = load_file(other_model / "model.safetensors")
    weights["lm_head.weight"] += 1e-3
    save_file(weights, other_model / "model.safetensors", metadata={"format": "pt"})
    other = dataclasses.replace(
        settings,
        learning_rate=5e-3,
        data=(str(other_rows),),
        model=str(other_model),
        save_total_limit=7,
    )
    with pytest.raises(ValueError, match="checkpoint-2 is of another run") as refusal:
        runs.train(other, tmp_path / "run", resume=True)
    lines = str(refusal.value).splitlines()
    assert "- learning_rate: the checkpoint has 0.01, this run 0.005" in lines
    assert any(line.startswith("- data: other rows than the checkpoint's") for line in lines)
    assert any(line.startswith("- model: another model than the") for line in lines)
    assert len(lines) == 5  # nothing else, and not the number of checkpoints kept
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_a_full_disk_leaves_the_last_checkpoint(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(Interruption):
            runs.train(settings, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal of this limit, so that a write fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="could not write a checkpoint into") as failure:
            runs.train(settings, tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-2 is whole: free some space and go on with --resume" in str(failure.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2"]


def test_only_the_newest_checkpoints_are_kept(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, save_steps=1, save_total_limit=1)
    foreign = tmp_path / "run" / "checkpoint-0"
    foreign.mkdir(parents=True)  # not of ours: without a record
    runs.train(settings, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-6"]
    assert foreign.is_dir()


def test_resume_without_a_checkpoint_begins_and_says_so(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, max_steps=1)
    said = []
    report = runs.train(settings, tmp_path, resume=True, say=said.append)
    assert report.resumed_from is None
    assert f"{tmp_path} has no complete checkpoint: the run begins at step 0" in said


@pytest.mark.parametrize("changes", [{}, {"max_steps": 5}, {"max_steps": 5, "streaming": True}])
def test_a_finished_run_takes_no_further_step_when_resumed(
    tiny_checkpoint, rows, tmp_path, changes
):
    # A schedule that does not end at zero: one more step would move the weights.
    if changes.get("streaming"):
        changes = {**changes, "group_by_modality_length": False}
    settings = build_tiny_settings(tiny_checkpoint, rows, schedule="constant", **changes)
    first = runs.train(settings, tmp_path)
    weights, losses = read_weights(tmp_path), read_report(tmp_path)["losses"]
    again = runs.train(settings, tmp_path, resume=True)
    assert again.num_steps == first.num_steps == len(losses)
    assert read_report(tmp_path)["losses"] == losses
    assert not (tmp_path / f"checkpoint-{first.num_steps + 1}").exists()
    found = read_weights(tmp_path)
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_a_damaged_checkpoint_is_named_and_not_resumed(tiny_checkpoint, rows, tmp_path):
    settings = build_tiny_settings(tiny_checkpoint, rows, max_steps=2, save_steps=1)
    runs.train(settings, tmp_path)
    folder = tmp_path / "checkpoint-2"
    kept = {name: (folder / name).read_bytes() for name in ("optimizer.pt", "scheduler.pt")}
    for name, content in kept.items():
        for damaged in (None, content[: len(content) // 2]):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name}: found .*expected {len(content)} bytes"):
                runs.train(settings, tmp_path, resume=True)
            (folder / name).write_bytes(content)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json lacks step, num_tokens, num_skipped_rows"):
        runs.train(settings, tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_what_no_run_made_is_never_replaced(tiny_checkpoint, rows, tmp_path, resume):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    settings = build_tiny_settings(tmp_path / "model", rows)
    with pytest.raises(ValueError, match="model is there already, and no run of this folder made"):
        runs.train(settings, tmp_path, resume=resume)
    assert load_file(tmp_path / "model" / "model.safetensors")
    other = tmp_path / "other"
    (other / STAGING).mkdir(parents=True)
    (other / STAGING / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"found mine\.txt in .*which no run wrote"):
        runs.train(settings, other, resume=resume)
    assert (other / STAGING / "mine.txt").read_text() == "mine"
