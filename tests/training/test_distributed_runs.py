"""Two ranks on gloo take the step that one process takes, also where one rank has no image."""

import dataclasses
import json
import socket

import pytest
from safetensors.torch import load_file

from hyperllava_hf.training import runs
from hyperllava_hf.training.row_order import ShuffledSampler
from tests.ranks import run_ranks
from tests.training.tiny_runs import build_tiny_settings, write_rows

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


def run_jobs(folder, jobs, environment=None):
    """Run `train_job` on both ranks; returns what they printed."""
    (folder / "job.json").write_text(json.dumps({"runs": jobs}), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(NUM_RANKS),
        "LOCAL_WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **(environment or {}),
    }
    environments = [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(NUM_RANKS)
    ]
    arguments = [[str(folder / "job.json")]] * NUM_RANKS
    return run_ranks("tests.training.train_job", arguments, environments)


@pytest.fixture(scope="module")
def settings(tiny_checkpoint, tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("rows"), COUNTS)
    return build_tiny_settings(
        tiny_checkpoint,
        rows,
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


@pytest.fixture(scope="module")
def start(tiny_checkpoint):
    return load_file(tiny_checkpoint / "model.safetensors")


def build_jobs(settings, output, sharding, interrupted):
    """A run, or one that is interrupted after its first step and goes on."""
    sharded = dataclasses.replace(settings, sharding=sharding, save_steps=1)
    job = {"settings": sharded.to_dict(), "output": str(output)}
    return [{**job, "stop_at": 1}, {**job, "resume": True}] if interrupted else [job]


def read_record(output, report):
    """Check a run's losses against one process; returns its record."""
    record = json.loads((output / "training.json").read_text())
    found = dict(record["losses"])
    assert found == pytest.approx(dict(report.losses), abs=2e-4)
    assert record["num_devices"] == NUM_RANKS
    assert record["batch"]["num_accumulated"] == 2
    return record


def test_ddp_and_fsdp2_equal_one_process(settings, alone, start, tmp_path):
    """FSDP2 through accelerate; its resume needs a GPU (torch: "Expected device to be set")."""
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    jobs = build_jobs(settings, plain, "none", interrupted=False)
    printed = run_jobs(tmp_path, jobs + build_jobs(settings, sharded, "fsdp2", interrupted=False))
    report, weights = alone
    assert_same_moves(plain, weights, start)
    read_record(plain, report)
    files = {path.name for path in (plain / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "run.json", "optimizer.pt"} <= files
    # Messages come from the first rank alone.
    assert "trained (" in printed[0]
    assert "trained (" not in printed[1]

    assert_same_moves(sharded, weights, start)
    read_record(sharded, report)
    files = {path.name for path in (sharded / "checkpoint-2").iterdir()}
    assert {"pytorch_model_fsdp.bin", "optimizer.bin", "run.json"} <= files


def test_zero3_equals_one_process(settings, alone, start, tmp_path):
    """DeepSpeed on the CPU, interrupted after its first step."""
    environment = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    jobs = build_jobs(settings, tmp_path / "run", "zero3", interrupted=True)
    run_jobs(tmp_path, jobs, environment)
    report, weights = alone
    assert_same_moves(tmp_path / "run", weights, start)
    assert read_record(tmp_path / "run", report)["resumed_from"] == "checkpoint-1"
