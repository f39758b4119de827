"""Running a LLaVA that does not fit into memory: each weight is there while it is used.

The model is built on the meta device, where tensors have a shape and no memory. Each module that
owns parameters gets them from a provider just before its forward and gives them back after it, so
one module's weights are resident at a time: less than a block of the decoder. It works because in
both models a parameter is only read in the forward of the module that owns it; what a module hands
on (a HyperNetwork returns its parameters) stays alive for as long as it is used.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Reads the parameter of a name of the frozen key set, in float32 and in memory of its own.
Provider = Callable[[str], torch.Tensor]

TOWER, NESTED_TOWER = "model.vision_tower.", "model.vision_tower.vision_model."
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def get_canonical_name(name: str) -> str:
    """Return the name in the frozen key set of what a model has in memory.

    Args:
        name: of a module or parameter of LLaVA on either transformers line.

    Returns:
        The name; transformers 5's tower lacks one level, which is put back.
    """
    if name.startswith(TOWER) and not f"{name}.".startswith(NESTED_TOWER):
        return NESTED_TOWER + name.removeprefix(TOWER)
    return name


def build_on_meta(model_class: Any, config: Any) -> Any:
    """Build a model without memory for its parameters.

    Args:
        model_class: class of the model.
        config: its configuration.

    Returns:
        The model, for evaluation in float32; buffers that no checkpoint holds are real.
    """
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(torch.float32).eval()
    _restore_buffers(model)
    return model


def _restore_buffers(model: nn.Module) -> None:
    for module in model.modules():
        if "inv_freq" in module._buffers:
            fresh: Any = type(module)(config=module.config)
            module._buffers.update(fresh._buffers)
            # A plain attribute on transformers 4.57, a buffer on 5.
            if "original_inv_freq" not in module._buffers:
                module.__dict__["original_inv_freq"] = fresh.inv_freq
        if "position_ids" in module._buffers:
            shape = module._buffers["position_ids"].shape  # type: ignore[union-attr]
            module._buffers["position_ids"] = torch.arange(shape[-1]).expand(shape)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not left, f"nothing says what {left} hold"


def list_parameters(model: nn.Module) -> dict[str, torch.Size]:
    """List what a model needs, a parameter that two modules share once for each.

    Args:
        model: on any device.

    Returns:
        Shapes by names of the frozen key set.
    """
    return {
        get_canonical_name(name): parameter.shape
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _load_own(module: nn.Module, prefix: str, provider: Provider) -> None:
    for name, expected in module._parameters.items():
        if expected is None:
            continue
        key = get_canonical_name(prefix + name)
        tensor = provider(key)
        # The vocabulary's size is no part of the computation: a base model's may be smaller.
        rows_may_differ = key in (HEAD, EMBEDDING)
        if tensor.shape[int(rows_may_differ) :] != expected.shape[int(rows_may_differ) :]:
            raise ValueError(
                f"{key}: found shape {tuple(tensor.shape)}, expected {tuple(expected.shape)} by "
                "the configuration. Check that config.json belongs to these weights"
            )
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)


def load_all(model: nn.Module, provider: Provider) -> None:
    """Give every module its parameters, to keep.

    Args:
        model: from `build_on_meta`.
        provider: reads a parameter.
    """
    for path, module in model.named_modules():
        _load_own(module, f"{path}." if path else "", provider)


def load_when_used(model: nn.Module, provider: Provider) -> list[RemovableHandle]:
    """Give each module its parameters for the time of its forward.

    Args:
        model: from `build_on_meta`.
        provider: reads a parameter; called again for each forward.

    Returns:
        Handles that undo it.
    """
    handles = []
    for path, module in model.named_modules():
        if not any(parameter is not None for parameter in module._parameters.values()):
            continue
        prefix, absent = f"{path}.", dict(module._parameters)

        def load(module: nn.Module, args: Any, prefix: str = prefix) -> None:
            _load_own(module, prefix, provider)

        def release(
            module: nn.Module,
            args: Any,
            output: Any,
            absent: dict[str, nn.Parameter | None] = absent,
        ) -> None:
            module._parameters.update(absent)

        handles += [module.register_forward_pre_hook(load), module.register_forward_hook(release)]
    return handles
