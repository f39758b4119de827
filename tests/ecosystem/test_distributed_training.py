"""Two CPU processes train what one process trains: DDP, and FSDP2 (torch's fully_shard on gloo).

Batches of text alone are among them, on one rank and on both: without the vision part in step, DDP
stops at unused parameters and FSDP2 waits for ever.
"""

import json

import pytest
import torch

from hyperllava_hf import HyperLlavaForConditionalGeneration
from tests.ecosystem.training_steps import NUM_RANKS, STEPS, load_model, run_alone
from tests.ranks import run_ranks
from tests.tiny_checkpoint import save_tiny_checkpoint

# fp32 gradients are summed in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Of how far training moves a tensor, beside the rounding of the weights themselves.
MOVE_TOLERANCE, ROUNDING = 0.02, 2e-7


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scopes")
    return {
        scope: save_tiny_checkpoint(folder / scope, language_guidance_scope=scope)
        for scope in ("token", "prompt")
    }


@pytest.fixture(scope="module")
def ranks(checkpoints, tmp_path_factory):
    """What both ranks found, and the folder that they wrote."""
    out = tmp_path_factory.mktemp("ranks")
    job = {
        "store": str(out / "store"),
        "out": str(out),
        "checkpoints": {scope: str(folder) for scope, folder in checkpoints.items()},
    }
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    arguments = [[str(out / "job.json"), str(rank)] for rank in range(NUM_RANKS)]
    run_ranks("tests.ecosystem.rank_job", arguments, [{}] * NUM_RANKS)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)], out


@pytest.fixture(scope="module")
def alone(checkpoints):
    """What one process finds on the same batches, by scope."""
    return {scope: run_alone(folder) for scope, folder in checkpoints.items()}


def read_losses(found, name):
    """Losses of a run, a list a step with one value a rank."""
    return [list(step) for step in zip(*(rank[name] for rank in found), strict=True)]


def assert_same_training(folder, start, expected):
    """Every tensor moved from `start` as one process moved it to `expected`."""
    trained = HyperLlavaForConditionalGeneration.from_pretrained(folder).state_dict()
    before = HyperLlavaForConditionalGeneration.from_pretrained(start).state_dict()
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        allowed = MOVE_TOLERANCE * (value - before[name]).norm() + ROUNDING * value.numel() ** 0.5
        assert (trained[name] - value).norm() <= allowed, name


@pytest.mark.parametrize(
    ("scope", "checkpointing"),
    [("token", "not_reentrant"), ("token", "reentrant"), ("prompt", "not_reentrant")],
)
def test_ddp_equals_one_process(ranks, alone, checkpoints, scope, checkpointing):
    found, out = ranks
    name = f"ddp {scope} {checkpointing}"
    losses, weights = alone[scope]
    torch.testing.assert_close(read_losses(found, name), losses, **TOLERANCE)
    assert_same_training(out / name, checkpoints[scope], weights)


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_fsdp2_equals_one_process_across_an_interruption(ranks, alone, checkpoints, scope):
    found, out = ranks
    losses, weights = alone[scope]
    torch.testing.assert_close(read_losses(found, f"fsdp {scope}"), losses, **TOLERANCE)
    assert_same_training(out / f"fsdp {scope}" / "whole", checkpoints[scope], weights)


def test_fsdp2_shards_every_parameter(ranks, checkpoints):
    found, _ = ranks
    model = load_model(checkpoints["token"])
    for name, parameter in model.named_parameters():
        lengths = [rank["shapes"][name][0] if rank["shapes"][name] else 0 for rank in found]
        assert sum(lengths) == parameter.shape[0], name
        assert max(lengths) < parameter.shape[0] or parameter.shape[0] == 1, name


def test_training_moves_what_images_train(alone, checkpoints):
    start = load_model(checkpoints["token"]).state_dict()
    _, trained = alone["token"]
    moved = {name for name, value in trained.items() if not torch.equal(value, start[name])}
    assert {name for name in moved if "vision_tower." in name} == set()
    assert any("visual_expert." in name for name in moved)
    assert any("language_expert." in name for name in moved)
    assert any(sum(step[0]) == 0 for step in STEPS)
