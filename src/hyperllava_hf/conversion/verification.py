"""Proof that a result computes what its source computes.

The source runs through transformers' own LLaVA on weights that a second, independent reader finds
(`reference_weights`); the result through the class that its users will load. Both compute in
float32 on the CPU, on inputs made by formula. Besides the logits, each block's output and each
tensor are compared, which tells where a difference begins.

Error model. Where nothing was computed with the weights, nothing may differ: the two sides do the
same operations on the same numbers. Else each weight is off by at most c times its tensor's
largest value (`weight_comparison`). To first order, with roundings independent of the activations,
a matrix product is then off by c of its size, and N products one after the other by N c:

    |difference of logits| <= N c max|logit|,   N = 4 text blocks + 4 vision layers + 3

The bound on the weights is the sharp one; this one says that they were put in their places.
"""

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from transformers import LlavaForConditionalGeneration

from .block_loading import build_on_meta, list_parameters
from .block_outputs import open_store
from .fixed_inputs import FixedRow, build_rows
from .model_runs import (
    Comparison,
    Side,
    build_from_weights,
    build_provider,
    collect_logits,
    compare_sides,
    load_through_transformers,
)
from .reference_weights import EMBEDDING, EXPERT_NAMES, HEAD, ReferenceWeights
from .source_parts import SourceParts
from .verification_configs import build_llava_config, find_result_parts, load_result_config
from .verification_report import Verification
from .weight_comparison import WeightDifference, compare_tensor, count_roundings

# An expert's update goes through these last; where they are zero, so is the update.
LAST_NAMES = ("weight_up", "bias_up")
NUM_NAMED = 3


@dataclass(frozen=True)
class _Case:
    """Everything that one verification is about."""

    parts: SourceParts
    destination: Path
    to: str
    is_whole: bool
    num_tokens: int
    reference: ReferenceWeights
    result: ReferenceWeights
    source_config: Any
    result_config: Any

    def build_source(self) -> Any:
        provider = build_provider(self.reference, self.num_tokens)
        return build_from_weights(
            LlavaForConditionalGeneration, self.source_config, provider, self.is_whole
        )

    def build_result(self) -> Any:
        model_class = _get_model_class(self.to)
        if self.is_whole and self.to != "llava":
            return load_through_transformers(model_class, self.destination, self.num_tokens)
        provider = build_provider(self.result, self.num_tokens)
        return build_from_weights(model_class, self.result_config, provider, self.is_whole)

    def get_source_with_experts(self) -> Side:
        """The source through our implementation: transformers has none with experts."""
        from hyperllava_hf.modeling import HyperLlavaConfig

        config = HyperLlavaConfig.from_dict(self.parts.config)
        weights = ReferenceWeights(self.parts, with_experts=True)
        build = partial(
            build_from_weights,
            _get_model_class("hyperllava"),
            config,
            build_provider(weights, self.num_tokens),
            self.is_whole,
        )
        return Side(build, config.image_token_id)


def _get_model_class(layout: str) -> Any:
    if layout != "hyperllava":
        return LlavaForConditionalGeneration
    from hyperllava_hf.modeling import HyperLlavaForConditionalGeneration

    return HyperLlavaForConditionalGeneration


def is_expert_name(key: str) -> bool:
    """Tell an expert's tensor by its name.

    Args:
        key: the name.

    Returns:
        True for an expert's.
    """
    return any(part in key for part in EXPERT_NAMES)


def experts_act(weights: ReferenceWeights) -> bool:
    """Tell whether a checkpoint's experts change anything.

    Args:
        weights: the checkpoint's, experts included.

    Returns:
        False where there are none or each is the identity update.
    """
    last = [key for key in weights if is_expert_name(key) and key.endswith(LAST_NAMES)]
    return any(bool(weights.load(key).count_nonzero()) for key in last)


def choose_mode(weights: ReferenceWeights, free_memory: int | None = None) -> str:
    """Choose whether whole models are run.

    Args:
        weights: the source's.
        free_memory: bytes that may be used, what the machine has left if None.

    Returns:
        "whole" if two models in float32 fit in half of the memory, else "blocks".
    """
    free = psutil.virtual_memory().available if free_memory is None else free_memory
    values = sum(math.prod(weights.shape(key)) for key in weights)
    return "whole" if 2 * 4 * values <= free / 2 else "blocks"


def _open_case(
    parts: SourceParts,
    destination: Path,
    to: str,
    source_config: dict[str, Any],
    source_vocab_rows: int,
    is_whole: bool,
) -> _Case:
    reference = ReferenceWeights(parts)
    result_parts = find_result_parts(destination, to, parts)
    result = ReferenceWeights(result_parts, with_experts=True)
    if to == "llava" and not any("vision_tower." in key for key in result):
        result.vision = reference
    own_config = build_llava_config(parts, reference, source_config)
    if to == "llava":
        result_config: Any = build_llava_config(result_parts, result, source_config)
    else:
        result_config = load_result_config(destination, to)
    for weights, model_class, config, side in (
        (reference, LlavaForConditionalGeneration, own_config, "source"),
        (result, _get_model_class(to), result_config, "result"),
    ):
        missing = [
            key for key in list_parameters(build_on_meta(model_class, config)) if key not in weights
        ]
        if missing:
            raise ValueError(
                f"the {side} lacks {len(missing)} weights, {missing[0]} among them; expected every "
                "weight of the model that its config.json describes. Check that all files are there"
            )
    num_tokens = min(source_vocab_rows, reference.shape(EMBEDDING)[0], reference.shape(HEAD)[0])
    for key in (EMBEDDING, HEAD):
        if to == "llava":
            # The original layout has no place for padding, so the way back may end before it.
            num_tokens = min(num_tokens, result.shape(key)[0])
        elif result.shape(key)[0] < num_tokens:
            raise ValueError(
                f"{key}: found {result.shape(key)[0]} rows in the result, expected the source's "
                f"{num_tokens} at least. Convert again"
            )
    return _Case(
        parts, destination, to, is_whole, num_tokens, reference, result, own_config, result_config
    )


def _compare_runs(
    case: _Case, rows: list[FixedRow], with_source_experts: bool, scratch: Path | None
) -> tuple[list[Comparison], float | None]:
    source = Side(case.build_source, case.source_config.image_token_id)
    result = partial(Side, case.build_result, case.result_config.image_token_id)
    acts = experts_act(case.result)
    with contextlib.ExitStack() as stack:
        store, close = open_store(case.is_whole, scratch)
        stack.callback(close)
        comparisons = [compare_sides(source, result(experts_enabled=not acts), rows, store)]
    if not acts:
        return comparisons, None
    if with_source_experts:
        with contextlib.ExitStack() as stack:
            store, close = open_store(case.is_whole, scratch)
            stack.callback(close)
            experts = case.get_source_with_experts()
            comparisons.append(compare_sides(experts, result(), rows, store))
        full = comparisons[-1].logits
    else:
        full = collect_logits(result(), rows)
    base = comparisons[0].logits
    return comparisons, max(float((full[row] - base[row]).abs().max()) for row in base)


def _compare_weights(case: _Case, with_source_experts: bool) -> list[WeightDifference]:
    reference = case.reference
    if with_source_experts:
        reference = ReferenceWeights(case.parts, with_experts=True)
    return [compare_tensor(reference, case.result, key, case.num_tokens) for key in reference]


def get_logits_tolerance(case: Any, scale: float) -> float:
    """Return what the error model allows the logits to differ.

    Args:
        case: the two sides' weights (`reference`, `result`) and the source's configuration.
        scale: the largest absolute logit.

    Returns:
        The tolerance; 0 where the weights are the same numbers.
    """
    relative = max(count_roundings(case.reference, case.result, key) for key in case.reference)
    config = case.source_config
    products = (
        4 * config.text_config.num_hidden_layers + 4 * config.vision_config.num_hidden_layers + 3
    )
    return float(relative * products * scale)


def _take_notes(case: _Case, compares_experts: bool, shift: float | None) -> tuple[str, ...]:
    notes = []
    num_left = case.reference.shape(HEAD)[0] - case.num_tokens
    if case.to == "llava" and num_left > 0:
        notes.append(f"The source's last {num_left} rows of the vocabulary were not compared.")
    if shift is None:
        return tuple(notes)
    notes += [f"Its experts change logits by up to {shift:.4g}."]
    if compares_experts:
        return (*notes, "Base and full model are each equal to the source's within the tolerance.")
    notes.append("With its experts switched off the result was compared to the source's base.")
    if case.parts.layout == "fork":
        notes.append(
            "No code runs a fork's experts here; they are compared tensor by tensor, by the "
            "manifest's checksums alone."
        )
    return tuple(notes)


def verify(
    parts: SourceParts,
    destination: Path,
    to: str,
    source_config: dict[str, Any],
    source_vocab_rows: int,
    mode: str | None = None,
    free_memory: int | None = None,
    scratch: Path | None = None,
    experts_kept: bool = True,
) -> Verification:
    """Compare a result with its source.

    Args:
        parts: the source.
        destination: the result's folder, complete.
        to: the result's layout: "hyperllava", "llava-hf" or "llava".
        source_config: the source's configuration in the llava-hf style; used for what the source's
            own files leave open.
        source_vocab_rows: rows of the source's vocabulary, the ones that are compared.
        mode: "whole", "blocks", or None to choose by the free memory.
        free_memory: bytes that may be used, what the machine has left if None.
        scratch: folder for the outputs of blocks, None for the system's temporary folder.
        experts_kept: whether the result's experts are meant to be those of the source.

    Returns:
        What was found; a failure is returned, not raised.

    Raises:
        ValueError: if a side is no whole model, so that there is nothing to run.
    """
    start = time.monotonic()
    mode = mode or choose_mode(ReferenceWeights(parts), free_memory)
    case = _open_case(
        parts, destination, to, source_config, source_vocab_rows, is_whole=mode == "whole"
    )
    never = {case.source_config.image_token_id, case.result_config.image_token_id}
    rows = build_rows(case.source_config, case.num_tokens, never)
    compares_experts = experts_kept and parts.layout == to == "hyperllava"
    comparisons, shift = _compare_runs(case, rows, compares_experts, scratch)
    weights = _compare_weights(case, compares_experts)
    verdict = _judge(case, rows, comparisons, weights)
    notes = _take_notes(case, compares_experts, shift)
    seconds = time.monotonic() - start
    return Verification(mode=mode, expert_shift=shift, seconds=seconds, notes=notes, **verdict)


def _judge(
    case: _Case,
    rows: list[FixedRow],
    comparisons: list[Comparison],
    weights: list[WeightDifference],
) -> dict[str, Any]:
    logits = [run.largest_of_logits for run in comparisons]
    worst = max(logits, key=lambda item: item.largest)
    scale = max(item.scale for item in logits)
    tolerance = get_logits_tolerance(case, scale)
    wrong = [item for item in weights if not item.is_allowed]
    wrong.sort(key=lambda item: -item.largest)
    first = next((run.first for run in comparisons if run.first is not None), None)
    where = None
    if worst.largest > 0:
        row = next(row for row in rows if row.name == worst.row)
        _, position, token = worst.index
        where = f"row '{row.name}', position {int(row.scored[position])}, vocabulary id {token}"
    return {
        "largest_difference": worst.largest,
        "where": where,
        "first_block": None if first is None else first.block,
        "largest_logit": scale,
        "tolerance": tolerance,
        "passed": not wrong and worst.largest <= tolerance and (tolerance > 0 or first is None),
        "num_logits": sum(part.numel() for run in comparisons for part in run.logits.values()),
        "num_tokens": case.num_tokens,
        "num_tensors": len(weights),
        "largest_weight_difference": max(item.largest for item in weights),
        "wrong_tensors": tuple(f"{item.key} (row {item.row})" for item in wrong[:NUM_NAMED]),
    }
