"""Two ranks on gloo take the step that one process takes, also where one rank has no image."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hyperllava_hf.training import runs
from hyperllava_hf.training.row_order import ShuffledSampler
from tests.training.tiny_runs import build_tiny_settings, write_rows

ROOT = Path(__file__).parents[2]
NUM_RANKS = 2
# Of how far the run moves a tensor, in float32, where ranks sum in another order.
MOVE_TOLERANCE, ROUNDING = 1e-3, 1e-6
COUNTS = (1, 0, 1, 2, 1, 0, 1, 0)


def find_seed():
    """A seed whose first epoch gives rank 1 a whole step of rows without images."""
    for seed in range(10_000):
        order = list(ShuffledSampler(len(COUNTS), seed))
        if [COUNTS[row] > 0 for row in order[:4]] == [True, False, True, False]:
            return seed
    raise AssertionError("no seed does")


def run_ranks(folder, settings, output, **environment):
    """Run `train_job` on both ranks; returns what they printed."""
    job = {"settings": settings.to_dict(), "output": str(output)}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "WORLD_SIZE": str(NUM_RANKS),
        "LOCAL_WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **environment,
    }
    command = [sys.executable, "-m", "tests.training.train_job", str(folder / "job.json")]
    children = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        printed = [child.communicate(timeout=240)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    codes = [child.returncode for child in children]
    assert codes == [0] * NUM_RANKS, "\n".join(text[-3000:] for text in printed)
    return printed


@pytest.fixture(scope="module")
def settings(tiny_checkpoint, tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("rows"), COUNTS)
    return build_tiny_settings(
        tiny_checkpoint,
        rows,
        optimizer="sgd",
        group_by_modality_length=False,
        device_batch_size=1,
        num_epochs=1.0,
        schedule="constant",
        seed=find_seed(),
    )


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """One process, which takes the ranks' rows one after another."""
    output = tmp_path_factory.mktemp("alone")
    return runs.train(settings, output), load_file(output / "model" / "model.safetensors")


def assert_same_moves(folder, expected, start):
    found = load_file(folder / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        allowed = MOVE_TOLERANCE * (value - start[name]).norm() + ROUNDING * value.numel() ** 0.5
        assert (found[name] - value).norm() <= allowed, name


def test_two_ranks_equal_one_process(settings, alone, tiny_checkpoint, tmp_path):
    run_ranks(tmp_path, settings, tmp_path / "run")
    report, weights = alone
    assert_same_moves(tmp_path / "run", weights, load_file(tiny_checkpoint / "model.safetensors"))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["num_devices"] == NUM_RANKS
    assert record["batch"]["num_accumulated"] == 2
    for (step, loss), (other_step, other_loss) in zip(record["losses"], report.losses, strict=True):
        assert step == other_step
        assert loss == pytest.approx(other_loss, abs=2e-4)
    own = json.loads((tmp_path / "run" / "checkpoint-2" / "run.json").read_text())
    assert own["num_tokens"] > 0
    files = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "run.json"} <= files
