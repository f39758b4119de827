"""Run on each of two ranks: save a state as real DeepSpeed ZeRO-2 and ZeRO-3 checkpoints.

Arguments: the state (.safetensors, the original LLaVA's keys), a folder. Writes FOLDER/zero-2 and
FOLDER/zero-3. The vision tower is frozen, as in LLaVA's own training; no step is taken, so that
the fp32 master weights are the state's, bit for bit. Nothing is compiled: torch's AdamW, and
without the optional kernel for shared memory.
"""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from safetensors.torch import load_file


def build_module(state):
    """A tree of empty modules that hold the state's parameters under its names."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        frozen = "vision_tower" in name
        module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=not frozen))
    return root


def save_stage(state, stage, folder):
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    module = build_module(state)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, config=config)
    engine.save_checkpoint(folder, tag="global_step1")


def main():
    state_file, folder, rank, rendezvous = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2
    )
    for stage in (2, 3):
        save_stage(load_file(state_file), stage, os.path.join(folder, f"zero-{stage}"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
