"""The switch between the model's own eager code and the fused kernels, model by model.

    set_expert_impl(model, "triton")     the kernels, or an error that says what is missing
    set_expert_impl(model, "auto")       the kernels where they were measured to be faster
    set_expert_impl(model, "eager")      as loaded
    model.expert_impl                    what acts now: "eager" or "triton"

Nothing of it is saved: a checkpoint holds weights and code that need no kernel.
"""

import importlib.util
import os
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

IMPLS = ("eager", "triton", "auto")

# Compute capabilities of GPUs on which the kernels were measured to be faster than eager code, by
# benchmarks/bench_kernel.py. None was at hand so far.
FASTER_ON: frozenset[tuple[int, int]] = frozenset()


def _is_interpreted() -> bool:
    # Read by triton itself, when it is first imported.
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def find_missing(device: torch.device) -> str | None:
    """Tell what keeps the kernels from running.

    Args:
        device: Where the model is.

    Returns:
        str | None: Found, expected and what to do; None if they can run.
    """
    if importlib.util.find_spec("triton") is None:
        return (
            "Found no package triton, expected triton 3.5 or newer. Install it with pip install "
            "'hyperllava-hf[triton]'; PyTorch for CUDA on Linux brings it along."
        )
    if device.type != "cuda" and not _is_interpreted():
        return (
            f"Found the model on {device.type!r}, expected 'cuda'. Move it first, or set "
            "TRITON_INTERPRET=1 before Python starts to try the kernels, slowly, on a CPU."
        )
    return None


def _choose(model: Any, impl: str) -> str:
    device = next(model.parameters()).device
    missing = find_missing(device)
    if impl == "triton" and missing is not None:
        raise ValueError(f"expert_impl='triton': {missing} 'auto' and 'eager' run everywhere.")
    if impl != "auto":
        return impl
    reason = missing
    if reason is None and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability in FASTER_ON:
            return "triton"
        reason = f"The kernels were not measured to be faster on compute capability {capability}."
    logger.warning_once(f"expert_impl='auto' uses 'eager': {reason or 'triton is interpreted.'}")
    return "eager"


def set_expert_impl(model: Any, impl: str) -> None:
    """Choose what applies the experts of one model.

    Args:
        model: A HyperLLaVA, with or without head, or something that wraps one.
        impl: "eager", "triton" or "auto".

    Raises:
        ValueError: If there is no such implementation, it cannot run, or the model has no experts.
    """
    if impl not in IMPLS:
        raise ValueError(f"Found expert_impl={impl!r}, expected one of {', '.join(IMPLS)}.")
    modules = list(model.modules())
    appliers = [module for module in modules if hasattr(module, "apply_expert")]
    if not appliers:
        raise ValueError(
            f"Found a {type(model).__name__} without places for experts, expected a HyperLLaVA. "
            "Load one with HyperLlavaForConditionalGeneration.from_pretrained."
        )
    chosen = _choose(model, impl)
    for module in appliers:
        if chosen == "triton":
            from .fused_expert import apply_fused_expert

            module.apply_expert = apply_fused_expert
        else:
            vars(module).pop("apply_expert", None)
    for module in modules:
        if hasattr(module, "expert_impl"):
            module.expert_impl = chosen
