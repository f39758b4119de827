"""TensorBoard and W&B through Trainer: what is logged reaches the tools."""

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperllava_hf.training import runs
from tests.training.tiny_runs import build_tiny_settings, write_rows

NUM_STEPS = 3
# As Trainer names them for both tools.
LOGGED = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")
LOGGED += ("train/grad_norm/projector", "train/update_norm/hypernetwork")


@pytest.fixture
def settings(tiny_checkpoint, tmp_path):
    rows = write_rows(tmp_path / "rows")
    return lambda tool: build_tiny_settings(
        tiny_checkpoint, rows, max_steps=NUM_STEPS, report_to=(tool,)
    )


def test_tensorboard_gets_every_logged_value(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    report = runs.train(settings("tensorboard"), tmp_path / "run")
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert set(LOGGED) <= set(found.Tags()["scalars"])
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert len(losses) == NUM_STEPS
    assert [step for step, _ in losses] == [step for step, _ in report.losses]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in report.losses])


def test_wandb_gets_every_logged_value_without_a_network(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    report = runs.train(settings("wandb"), tmp_path / "run")
    try:
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    assert set(LOGGED) <= set(summary)
    assert summary["train/global_step"] == NUM_STEPS
    assert summary["train/loss"] == pytest.approx(report.losses[-1][1])
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 1
