"""Consolidate a DeepSpeed ZeRO-2 or ZeRO-3 checkpoint with DeepSpeed's own tool.

The tool runs in a process of its own, because it must not be trusted with pickles: it asks torch to
load them with code, so that process is started with TORCH_FORCE_WEIGHTS_ONLY_LOAD, under which
torch refuses anything but tensors, plain containers and the few DeepSpeed records named below.
Its memory is DeepSpeed's: for ZeRO-2 about the model in float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

# Records without behaviour that DeepSpeed stores beside the tensors.
RECORDS = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
SHARD_SIZE = "1GB"


def consolidate_zero(checkpoint: Path, output: Path) -> Path:
    """Consolidate a checkpoint into safetensors, in float32 as ZeRO keeps its weights.

    Args:
        checkpoint: the folder that holds `latest` and `global_stepN/`.
        output: where to write.

    Returns:
        The output folder.

    Raises:
        ValueError: if DeepSpeed is not installed or cannot consolidate the checkpoint.
    """
    if find_spec("deepspeed") is None:
        raise ValueError(
            f"{checkpoint} is a DeepSpeed ZeRO checkpoint, whose consolidation needs deepspeed, "
            "which is not installed: pip install 'hyperllava-hf[zero]'"
        )
    module = "hyperllava_hf.conversion.zero_checkpoints"
    environment = {
        **os.environ,
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "DS_ACCELERATOR": "cpu",
        # The package as it is imported here, also where it is not installed.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, "-m", module, str(checkpoint), str(output)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        last = (result.stderr.strip() or "no message").splitlines()
        reason = next(
            (line for line in last if "Unsupported" in line or "GLOBAL" in line), last[-1]
        )
        raise ValueError(
            f"DeepSpeed could not consolidate {checkpoint}: {reason}; expected a whole ZeRO-2 or "
            "ZeRO-3 checkpoint that holds nothing but tensors and DeepSpeed's own records"
        )
    return output


def main(checkpoint: str, output: str) -> None:
    """Consolidate in this process, which must be the one that `consolidate_zero` starts."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    for module, names in RECORDS.items():
        held = import_module(module)
        torch.serialization.add_safe_globals([getattr(held, name) for name in names])
    convert_zero_checkpoint_to_fp32_state_dict(
        checkpoint, output, max_shard_size=SHARD_SIZE, safe_serialization=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
