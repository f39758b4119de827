"""Looking at generated weights: one forward with its experts' arguments caught on the way.

Hooks are only for looking; nothing that computes an answer depends on them.
"""

import contextlib
from typing import Any

import torch

from .experts_hyperllava import Expert


def _materialize(
    weights: tuple[torch.Tensor, ...], position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(weights) == 5:
        code, weight_down, bias_down, weight_up, bias_up = weights
        code = code[:, position]  # (B, M)
        down = torch.tensordot(code, weight_down, dims=1) + bias_down
        up = torch.tensordot(code, weight_up, dims=1) + bias_up
    else:
        down, up = weights
    return down, up.mT


@torch.no_grad()
def collect_expert_weights(
    model: Any, position: int, inputs: dict[str, Any]
) -> dict[str, dict[Any, tuple[torch.Tensor, torch.Tensor]]]:
    """Run a forward and collect what each expert generated.

    Args:
        model: A HyperLLaVA, with or without head.
        position: Position of the language experts under scope "token".
        inputs: The call's arguments, without a filled cache.

    Returns:
        dict[str, dict[Any, tuple[torch.Tensor, torch.Tensor]]]: `visual` by site and `language` by
            block, each (W_d, W_u).
    """
    collected: dict[str, dict[Any, tuple[torch.Tensor, torch.Tensor]]] = {
        "visual": {},
        "language": {},
    }

    def catch(kind: str, name: Any) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            collected[kind][name] = _materialize(output, position)

        return hook

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, Expert):
                *_, owner, name = path.split(".")
                kind, key = (
                    ("visual", name) if owner == "visual_expert" else ("language", int(owner))
                )
                stack.callback(module.register_forward_hook(catch(kind, key)).remove)
        model(**inputs)
    return collected
