"""Experts frozen at their mean over data: a HyperLLaVA becomes a LLaVA with plain adapters.

Everything between a guidance g and the weights K that it generates is affine (Eq. 3-4 of arXiv
2403.13447, which has no nonlinearity there), so the mean of the generated weights is the weights
of the mean guidance: one pass over data that sums guidance is exact, and no generated weight is
ever summed. A language expert's mean is over attended positions (scope "token") or over samples
(scope "prompt"), a visual expert's over images; a learned code (`expert_source` "latent") takes no
guidance, so that any batch gives the same.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..modeling import HyperLlavaForConditionalGeneration
from ..modeling.experts_hyperllava import Expert

FROZEN_SOURCE = "static"
# The two tensors of a static adapter: W_d (2R, D_in) and W_u, transposed (R, D_out).
FROZEN_NAMES = ("bias_down", "bias_up")


class _GuidanceMean:
    """The running mean of one expert's guidance, and what generates its weights.

    Attributes:
        total: sum of the guidance (D,), float64.
        count: how many vectors were summed.
        hypernetwork: the tensors of the HyperNetwork, as the expert was given them.
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.count = 0
        self.hypernetwork: tuple[torch.Tensor, ...] = ()

    def add(self, guidance: torch.Tensor, attended: torch.Tensor | None) -> None:
        """Add one vector a sample (B, D), or one for each attended position (B, L, D)."""
        vectors = guidance if guidance.ndim == 2 else guidance.flatten(0, 1)
        if guidance.ndim == 3 and attended is not None:
            vectors = guidance[attended.to(guidance.device).bool()]
        total = vectors.double().sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += vectors.shape[0]


@contextlib.contextmanager
def _watch(
    means: dict[str, _GuidanceMean], model: nn.Module, batch: dict[str, Any]
) -> Iterator[None]:
    def catch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            _, guidance, *hypernetwork = args
            mean = means[name]
            mean.hypernetwork = tuple(hypernetwork)
            if module.source == "guided":
                mean.add(guidance, batch.get("attention_mask"))

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in means:
                stack.callback(module.register_forward_pre_hook(catch(name)).remove)
        yield


@torch.no_grad()
def measure_mean_experts(
    model: HyperLlavaForConditionalGeneration, batches: Iterable[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Measure the mean of the weights that a model generates over data.

    Args:
        model: A HyperLLaVA whose experts are guided or latent.
        batches: The arguments of its forward, as from the processor; on the model's device.

    Returns:
        For each expert `NAME.bias_down` (2R, D_in) and `NAME.bias_up` (R, D_out), fp32: the names
        and shapes that a model with `expert_source="static"` has.

    Raises:
        ValueError: If the model has no experts that could be frozen, or the data leave an expert
            without guidance.
    """
    experts = {n: m for n, m in model.named_modules() if isinstance(m, Expert)}
    if not experts or model.config.expert_source == FROZEN_SOURCE:
        raise ValueError(
            f"found {len(experts)} experts with expert_source={model.config.expert_source!r}, "
            "expected some whose weights are generated: there is nothing to freeze"
        )
    means = {name: _GuidanceMean() for name in experts}
    was_training = model.training
    model.eval()
    for batch in batches:
        arguments = dict(batch)
        with _watch(means, model, arguments):
            model(**{**arguments, "use_cache": False})
    model.train(was_training)
    unseen = sorted(name for name, mean in means.items() if not mean.hypernetwork)
    unseen += sorted(
        name
        for name, mean in means.items()
        if mean.hypernetwork and experts[name].source == "guided" and mean.count == 0
    )
    if unseen:
        raise ValueError(
            f"found no guidance for {unseen[0]} (of {len(unseen)} experts) in the data, expected "
            "some for each expert: give rows with images, and text to attend to"
        )
    return {
        f"{name}.{part}": tensor
        for name, mean in means.items()
        for part, tensor in zip(FROZEN_NAMES, _generate(experts[name], mean), strict=True)
    }


def _generate(expert: Expert, mean: _GuidanceMean) -> tuple[torch.Tensor, ...]:
    guidance = None if mean.total is None else (mean.total / mean.count).float().unsqueeze(0)
    weights = expert(torch.float32, guidance, *mean.hypernetwork)
    return tuple(weight[0] if weight.ndim == 3 else weight for weight in weights)


@torch.no_grad()
def freeze_experts(
    model: HyperLlavaForConditionalGeneration, batches: Iterable[Mapping[str, Any]]
) -> HyperLlavaForConditionalGeneration:
    """Build the model whose experts are the mean of what this one generates over data.

    Args:
        model: A HyperLLaVA whose experts are guided or latent; it stays as it is.
        batches: As in `measure_mean_experts`.

    Returns:
        The same base with static adapters, in evaluation mode, in the model's dtype.

    Raises:
        ValueError: As `measure_mean_experts`.
    """
    frozen = measure_mean_experts(model, batches)
    config = copy.deepcopy(model.config)
    config.expert_source = FROZEN_SOURCE
    static = type(model)(config).to(model.device, model.dtype)
    own = static.state_dict()
    weights = {name: value for name, value in model.state_dict().items() if name in own}
    static.load_state_dict({**weights, **frozen})
    return static.eval()
