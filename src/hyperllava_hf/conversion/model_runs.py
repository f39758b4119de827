"""Runs of two models on the same inputs, block by block side by side, one model at a time."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .block_loading import Provider, build_on_meta, load_all, load_when_used
from .block_outputs import (
    EMBEDDING,
    HEAD,
    OutputDifference,
    OutputStore,
    measure_difference,
    watch_blocks,
)
from .fixed_inputs import FixedRow
from .reference_weights import HEAD as HEAD_WEIGHT
from .reference_weights import ReferenceWeights

Observer = Callable[[str, str, torch.Tensor], None]


@dataclass(frozen=True)
class Side:
    """A model to run.

    Attributes:
        build: makes the model, ready to run.
        image_token_id: its placeholder.
        experts_enabled: whether its experts act.
    """

    build: Callable[[], Any]
    image_token_id: int
    experts_enabled: bool = True


@dataclass
class Comparison:
    """Two models on the same inputs.

    Attributes:
        differences: of every block, in the order of computation, row by row.
        logits: of the second model, by row.
    """

    differences: list[OutputDifference] = field(default_factory=list)
    logits: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def largest_of_logits(self) -> OutputDifference:
        """The row whose logits differ most."""
        return max(
            (item for item in self.differences if item.block == HEAD), key=lambda item: item.largest
        )

    @property
    def first(self) -> OutputDifference | None:
        """The first block that differs at all."""
        return next((item for item in self.differences if item.largest > 0), None)


def build_provider(weights: ReferenceWeights, num_tokens: int) -> Provider:
    """Build what a model reads its weights from.

    Args:
        weights: a checkpoint's.
        num_tokens: rows of the head to compute: a product with more columns may be cut into other
            pieces by the processor, and round differently.

    Returns:
        The provider.
    """

    def load(key: str) -> torch.Tensor:
        return weights.load(key, torch.float32, num_tokens if key == HEAD_WEIGHT else None)

    return load


def build_from_weights(model_class: Any, config: Any, provider: Provider, is_whole: bool) -> Any:
    """Build a model that reads its weights at once, or while it runs.

    Args:
        model_class: class of the model.
        config: its configuration.
        provider: reads a parameter.
        is_whole: whether to read at once.

    Returns:
        The model.
    """
    model = build_on_meta(model_class, config)
    (load_all if is_whole else load_when_used)(model, provider)
    return model


def load_through_transformers(model_class: Any, folder: Any, num_tokens: int) -> Any:
    """Load a result as its users will.

    Args:
        model_class: class of the model.
        folder: the result.
        num_tokens: rows of the head to compute.

    Returns:
        The model in float32.

    Raises:
        ValueError: if transformers finds weights missing.
    """
    model, info = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"the result lacks {len(missing)} weights, {missing[0]} among them; expected every "
            "weight of the model. Convert again"
        )
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:num_tokens].detach())
    for parameter in model.parameters():
        # Loading may leave a parameter where its file is mapped; see ReferenceWeights.load.
        parameter.data = parameter.data.clone()
    return model.eval()


@torch.no_grad()
def run_side(side: Side, rows: list[FixedRow], observe: Observer) -> None:
    """Run a model on the inputs.

    Args:
        side: the model.
        rows: the inputs.
        observe: takes the row's name, the block's and its output.
    """
    model = side.build()
    switch = contextlib.nullcontext() if side.experts_enabled else model.disable_experts()
    with switch:
        for row in rows:

            def look(block: str, output: torch.Tensor, row: FixedRow = row) -> None:
                # At an image's positions the embedding is the placeholder's, which is not used.
                observe(row.name, block, output[:, row.is_text] if block == EMBEDDING else output)

            inputs = row.get_model_inputs(side.image_token_id)
            if getattr(model.model, "guides_whole_samples", False):
                inputs["guidance_mask"] = torch.ones_like(inputs["input_ids"])
            handles = watch_blocks(model, look)
            model(**inputs)
            for handle in handles:
                handle.remove()


def compare_sides(
    expected: Side, found: Side, rows: list[FixedRow], store: OutputStore
) -> Comparison:
    """Run two models one after the other and compare every block.

    Args:
        expected: the model that is right.
        found: the other.
        rows: the inputs.
        store: for the first one's outputs.

    Returns:
        The differences.
    """
    run_side(expected, rows, store.put)
    comparison = Comparison()

    def compare(row: str, block: str, output: torch.Tensor) -> None:
        distance = measure_difference(output, store.get(row, block))
        comparison.differences.append(OutputDifference(row, block, *distance))
        if block == HEAD:
            comparison.logits[row] = output.clone()

    run_side(found, rows, compare)
    return comparison


def collect_logits(side: Side, rows: list[FixedRow]) -> dict[str, torch.Tensor]:
    """Run a model for its logits alone.

    Args:
        side: the model.
        rows: the inputs.

    Returns:
        The logits (1, scored positions, vocabulary) by row.
    """
    logits = {}

    def keep(row: str, block: str, output: torch.Tensor) -> None:
        if block == HEAD:
            logits[row] = output.clone()

    run_side(side, rows, keep)
    return logits
