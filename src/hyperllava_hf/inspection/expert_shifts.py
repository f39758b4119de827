"""How far each expert shifts the output of what it is added to, for one input.

A language expert is added to its block's MLP (Eq. 7), a visual expert to one of the projector's two
linear layers (Eq. 6). Both sides are measured as root mean squares over positions and channels:

    shift / output = rms(E(x)) / rms(MLP(x))

Hooks catch both sides during one forward; nothing that computes an answer depends on them.

Dimensions: N images, P patches, L text positions, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hyperllava_hf.chat import Chat
from hyperllava_hf.modeling.experts_hyperllava import Expert, apply_expert


@dataclass(frozen=True)
class ExpertShift:
    """One expert's shift; the ratios are None where there are no such positions."""

    expert: str
    output_rms: float
    shift_rms: float
    ratio: float | None
    image_ratio: float | None
    text_ratio: float | None


def compute_ratio(shift: torch.Tensor, output: torch.Tensor) -> float | None:
    """Divide the root mean squares of two tensors; None if there is nothing to divide by."""
    power = output.square().sum().item()
    return (shift.square().sum().item() / power) ** 0.5 if power > 0 else None


class ShiftRecorder:
    """Collects, by expert, the update and the output that it is added to."""

    def __init__(self) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self.updates: dict[str, torch.Tensor] = {}
        self._weights: dict[str, tuple[torch.Tensor, ...]] = {}

    def _catch_linear(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self.outputs[name] = output.float()

        return hook

    def _catch_visual_update(
        self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor
    ) -> None:
        self.updates[f"visual {args[0]}"] = output.float()

    def _catch_mlp(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            # A block makes its expert's weights before its MLP runs.
            self.updates[name] = apply_expert(args[0], *self._weights.pop(name)).float()
            self.outputs[name] = output.float()

        return hook

    def _catch_language_weights(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], weights: Any) -> None:
            self._weights[name] = weights

        return hook

    @contextmanager
    def watch(self, model: Any) -> Iterator[None]:
        """Record what happens in a model's experts until the end of the with block.

        Args:
            model: a HyperLLaVA with a language modelling head.

        Yields:
            Nothing.
        """
        projector = model.model.multi_modal_projector
        watched: list[tuple[nn.Module, Any]] = []
        if projector.visual_expert is not None:
            watched.append((projector.visual_expert, self._catch_visual_update))
            watched.append((projector.linear_1, self._catch_linear("visual first")))
            watched.append((projector.linear_2, self._catch_linear("visual second")))
        for index, block in enumerate(model.model.language_model.layers):
            if isinstance(block.language_expert, Expert):
                name = f"language {index}"
                watched.append((block.mlp, self._catch_mlp(name)))
                watched.append((block.language_expert, self._catch_language_weights(name)))
        handles = [module.register_forward_hook(hook) for module, hook in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def get_shifts(self, is_image: torch.Tensor) -> list[ExpertShift]:
        """Compare each expert's update with the output that it is added to.

        Args:
            is_image: which positions of the prompt are image positions (L,).

        Returns:
            One entry an expert, the projector's first.
        """
        shifts = []
        for name, update in self.updates.items():
            output = self.outputs[name]
            image = text = None
            if name.startswith("language"):
                image = compute_ratio(update[:, is_image], output[:, is_image])
                text = compute_ratio(update[:, ~is_image], output[:, ~is_image])
            shifts.append(
                ExpertShift(
                    expert=name,
                    output_rms=output.square().mean().sqrt().item(),
                    shift_rms=update.square().mean().sqrt().item(),
                    ratio=compute_ratio(update, output),
                    image_ratio=image,
                    text_ratio=text,
                )
            )
        return shifts


@torch.no_grad()
def measure_expert_shifts(
    checkpoint: str | None,
    images: list[str],
    question: str,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> list[ExpertShift]:
    """Run one prompt through a model and measure each expert's shift.

    Args:
        checkpoint: a folder, a Hub id, or None for the bundled checkpoint.
        images: files or URLs.
        question: what is asked about them.
        revision: branch, tag or commit on the Hub.
        device: a torch device, or auto.
        dtype: the name of a torch dtype, or auto for the checkpoint's own.

    Returns:
        One entry an expert, the projector's first.
    """
    chat = Chat.load(checkpoint, images, revision, device, dtype)
    chat.add_question(question)
    inputs = chat.build_inputs()
    recorder = ShiftRecorder()
    with recorder.watch(chat.model):
        chat.model(**inputs, use_cache=False)
    is_image = inputs["input_ids"][0] == chat.model.config.image_token_id
    return recorder.get_shifts(is_image)
