"""One rank of a training run on two CPU processes: DDP in several settings, then FSDP2.

Arguments: a JSON file {"store": file of the process group, "checkpoints": folder by scope, "out":
folder}, and the rank. Writes the rank's losses; rank 0 also writes what was trained.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.ecosystem.training_steps import LEARNING_RATE, NUM_RANKS, build_batches, load_model

DDP_SETTINGS = (("token", "not_reentrant"), ("token", "reentrant"), ("prompt", "not_reentrant"))
SHARDED_BLOCKS = ("HyperLlavaDecoderLayer", "CLIPEncoderLayer")


def train(model, batches, rank):
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), LEARNING_RATE)
    losses = []
    for step in batches:
        optimizer.zero_grad()
        loss = model(**step[rank]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run_ddp(folder, gradient_checkpointing, rank, out):
    # find_unused_parameters stays off: an unused one stops the second step.
    model = DistributedDataParallel(load_model(folder, gradient_checkpointing))
    losses = train(model, build_batches(folder), rank)
    if rank == 0:
        model.module.save_pretrained(out)
    return losses


def shard(model, mesh):
    for module in list(model.modules()):
        if type(module).__name__ in SHARDED_BLOCKS:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def run_fsdp(folder, rank, out):
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    batches = build_batches(folder)
    model = shard(load_model(folder, "not_reentrant"), mesh)
    losses = train(model, batches[:-1], rank)
    # The run is interrupted and taken up from its checkpoint, whose parts each rank wrote.
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=out / "parts")
    resumed = shard(load_model(folder, "not_reentrant"), mesh)
    state = {"model": get_model_state_dict(resumed)}
    dcp.load(state, checkpoint_id=out / "parts")
    resumed.load_state_dict(state["model"])
    losses += train(resumed, batches[-1:], rank)
    whole = get_model_state_dict(
        resumed, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if rank == 0:
        resumed.save_pretrained(out / "whole", state_dict=whole)
    shapes = {name: list(p.to_local().shape) for name, p in model.named_parameters()}
    return losses, shapes


def main():
    job, rank = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job['store']}",
        rank=rank,
        world_size=NUM_RANKS,
        timeout=timedelta(seconds=60),
    )
    out, found = Path(job["out"]), {}
    for scope, checkpointing in DDP_SETTINGS:
        name = f"ddp {scope} {checkpointing}"
        found[name] = run_ddp(job["checkpoints"][scope], checkpointing, rank, out / name)
    for scope, folder in job["checkpoints"].items():
        name = f"fsdp {scope}"
        found[name], found["shapes"] = run_fsdp(folder, rank, out / name)
    (out / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
