"""Norms of gradients and of HyperNetwork updates, group by group, for the log.

A step of size lr on every entry of W2 moves an entry of K by up to m times as much (Eq. 4), so the
HyperNetworks are watched on their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .stages import get_group

HYPERNETWORK = "hypernetwork"
# By name: an FSDP2 or remote-code class is another class of the same name.
HYPERNETWORK_CLASS = "HyperNetwork"


def find_hypernetwork_names(model: nn.Module) -> set[str]:
    """Find the parameters W1, B1, W2 and B2 of all HyperNetworks.

    Args:
        model: A HyperLLaVA, wrapped or not.

    Returns:
        Their names in `model.named_parameters()`.
    """
    names = set()
    for prefix, module in model.named_modules():
        if HYPERNETWORK_CLASS in {base.__name__ for base in type(module).__mro__}:
            names |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    return names


def group_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trained parameters into groups; a HyperNetwork's are in two.

    Args:
        model: A model after `set_trainable`.

    Returns:
        Parameters by group, and those of all HyperNetworks under "hypernetwork".
    """
    hypernetworks = find_hypernetwork_names(model)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(get_group(name), []).append(parameter)
            if name in hypernetworks:
                groups.setdefault(HYPERNETWORK, []).append(parameter)
    return groups


def to_float(value: Any) -> float:
    """Read a norm, whole even where ranks hold shards of it.

    Args:
        value: A number, a tensor or a distributed tensor.

    Returns:
        The number.
    """
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return float(value)


def get_norm(tensors: Iterable[torch.Tensor]) -> float:
    """Compute the norm of several tensors taken as one.

    Args:
        tensors: The tensors.

    Returns:
        The 2-norm; 0 without tensors.
    """
    found = list(tensors)
    return to_float(torch.nn.utils.get_total_norm(found)) if found else 0.0


def get_gradient_norms(groups: dict[str, list[nn.Parameter]], scale: float) -> dict[str, float]:
    """Compute the gradient norm of every group.

    Args:
        groups: Parameters by group.
        scale: What clipping has multiplied gradients with.

    Returns:
        Norms before clipping, as `grad_norm/GROUP`.
    """
    norms = {
        group: get_norm(p.grad for p in parameters if p.grad is not None)
        for group, parameters in groups.items()
    }
    return {f"grad_norm/{group}": norm / scale for group, norm in norms.items()}


class UpdateNorm:
    """How far one optimiser step moves some parameters.

    Args:
        parameters: The parameters, as they are before the step.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.before = [parameter.detach().clone() for parameter in parameters]

    def measure(self) -> float:
        """Return the 2-norm of the movement."""
        pairs = zip(self.parameters, self.before, strict=True)
        return get_norm(parameter.detach() - before for parameter, before in pairs)
