"""What the experts do: answers with tampered experts, and the weights that are generated.

The guidance of the experts is exchanged on its way in:

    as trained   nothing is changed
    swapped      guidance of another question of the batch, position by position
    mean         its mean over training rows; K is affine in the guidance, so this is the expert
                 whose weights are the mean of the generated ones (the static freeze)
    off          no expert at all

each for the visual expert, the language experts, or both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evaluation.digits import load_split_questions
from .arm_training import build_collator
from .arms import Arm
from .exact_answers import QuestionRows, score_answers
from .training_rows import IGNORED_LABEL

MODALITIES = ("visual", "language")
TARGETS = {"visual": ("visual",), "language": ("language",), "both": MODALITIES}
NUM_MEAN_BATCHES = 20
MEAN_BATCH_SIZE = 16
NUM_WEIGHTS = 200  # questions whose generated weights are looked at
SHUFFLE_SEED = 0
Change = Callable[[torch.Tensor], torch.Tensor]


def list_experts(model: nn.Module, modality: str) -> list[nn.Module]:
    """List the expert modules of a modality.

    Args:
        model: A HyperLLaVA.
        modality: "visual" or "language".

    Returns:
        The modules that generate weights, one a site or block.
    """
    return [
        module
        for name, module in model.named_modules()
        if hasattr(module, "encoder_weight") and f"{modality}_expert" in name
    ]


@contextlib.contextmanager
def change_guidance(model: nn.Module, changes: dict[str, Change]) -> Iterator[None]:
    """Change guidance on its way into the experts.

    Args:
        model: A HyperLLaVA with guided experts.
        changes: For each modality, what is done to guidance (N or B, D_g) or (B, L, D_g).

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for modality, change in changes.items():

            def hook(module: Any, args: tuple[Any, ...], change: Change = change) -> Any:
                dtype, guidance, *rest = args
                return dtype, change(guidance), *rest

            for module in list_experts(model, modality):
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


@contextlib.contextmanager
def switch_off(model: Any, modalities: tuple[str, ...]) -> Iterator[None]:
    """Switch the experts of modalities off.

    Args:
        model: A HyperLLaVA.
        modalities: Of `MODALITIES`.

    Yields:
        Nothing.
    """
    owners = {"visual": model.model.multi_modal_projector, "language": model.model.language_model}
    for modality in modalities:
        owners[modality].experts_enabled = False
    try:
        yield
    finally:
        for modality in modalities:
            owners[modality].experts_enabled = True


def swap_rows(guidance: torch.Tensor) -> torch.Tensor:
    """Give each row the guidance of the row before it.

    Args:
        guidance: (B, D_g) or (B, L, D_g).

    Returns:
        The same shape.
    """
    return guidance.roll(1, 0)


def measure_mean_guidance(factory: Any, model: Any, arm: Arm) -> dict[str, torch.Tensor]:
    """Average guidance over training rows.

    Args:
        factory: Holds the training set.
        model: The model.
        arm: The arm.

    Returns:
        The mean guidance (D_g,) of each modality; over samples or, under scope "token", over
        attended positions.
    """
    collate = build_collator(factory.training_set, "instruct", factory.processor, arm.dense_images)
    sums: dict[str, Any] = dict.fromkeys(MODALITIES, 0.0)
    counts = dict.fromkeys(MODALITIES, 0)
    attended = torch.ones(0)

    def observe(modality: str) -> Change:
        def change(guidance: torch.Tensor) -> torch.Tensor:
            values = guidance[attended.bool()] if guidance.ndim == 3 else guidance
            sums[modality] = sums[modality] + values.double().sum(0)
            counts[modality] += len(values)
            return guidance

        return change

    total = min(NUM_MEAN_BATCHES * MEAN_BATCH_SIZE, len(factory.training_set.features))
    with torch.no_grad(), change_guidance(model, {name: observe(name) for name in MODALITIES}):
        for start in range(0, total, MEAN_BATCH_SIZE):
            batch = collate(list(range(start, min(start + MEAN_BATCH_SIZE, total))))
            attended = batch["attention_mask"]
            model(**batch)
    return {name: (sums[name] / counts[name]).float() for name in MODALITIES if counts[name]}


def shuffle_questions(questions: QuestionRows) -> QuestionRows:
    """Order questions at random, so that the neighbour in a batch is about anything.

    Args:
        questions: Questions, family by family.

    Returns:
        The same questions in another order.
    """
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(questions.rows)).tolist()
    return QuestionRows(
        [questions.families[i] for i in order],
        questions.features[order],
        [questions.rows[i] for i in order],
    )


def measure_effects(factory: Any, arm: Arm, seed: int) -> dict[str, Any]:
    """Measure a finished run with tampered experts, on validation.

    Args:
        factory: Loads the run.
        arm: A guided arm.
        seed: The run's seed.

    Returns:
        "accuracy" by change and target, and "weights": a projection of generated weights.
    """
    model = factory.load_run(arm, seed)
    questions = shuffle_questions(factory.validation)

    def measure() -> dict[str, float]:
        return score_answers(model, questions, factory.processor, arm.dense_images)

    accuracy = {"as trained": measure()}
    means = measure_mean_guidance(factory, model, arm)
    for target, modalities in TARGETS.items():
        with change_guidance(model, dict.fromkeys(modalities, swap_rows)):
            accuracy[f"swapped {target}"] = measure()
        replace = {m: _replace_by(means[m]) for m in modalities}
        with change_guidance(model, replace):
            accuracy[f"mean {target}"] = measure()
        with switch_off(model, modalities):
            accuracy[f"off {target}"] = measure()
    return {"accuracy": accuracy, "weights": project_weights(factory, model)}


def _replace_by(mean: torch.Tensor) -> Change:
    return lambda guidance: mean.expand_as(guidance)


@torch.no_grad()
def project_weights(factory: Any, model: Any) -> dict[str, Any]:
    """Project the weights that questions generate onto their two main directions.

    Args:
        factory: Holds the questions.
        model: A guided model.

    Returns:
        For each question its family and what its image shows, and for each modality two
        coordinates a question, the share of variance that they hold, and the shares of the
        weights' variance that lie between groups of questions.
    """
    questions = load_split_questions("validation", factory.settings.num_validation)
    every = max(1, len(questions) // NUM_WEIGHTS)
    chosen = list(range(0, len(questions), every))
    weights: dict[str, list[torch.Tensor]] = {modality: [] for modality in MODALITIES}
    for i in chosen:
        ids, labels = factory.validation.rows[i]
        prompt = ids[: int((labels != IGNORED_LABEL).nonzero()[0])][None]
        generated = model.expert_weights(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=factory.validation.features[i : i + 1],
        )
        for modality in MODALITIES:
            pair = generated[modality][max(generated[modality])]
            weights[modality].append(torch.cat([part.flatten() for part in pair]))
    labels_of = {
        "family": [questions[i].family for i in chosen],
        "number of digits": [str(len(questions[i].scene["digits"])) for i in chosen],
        "top left": [_find_top_left(questions[i].scene) for i in chosen],
    }
    projections = {name: _project(torch.stack(w), labels_of) for name, w in weights.items() if w}
    return {"labels": labels_of, **projections}


def _find_top_left(scene: dict[str, Any]) -> str:
    cells = {entry["place"]: str(entry["digit"]) for entry in scene["digits"]}
    return cells.get("top left", "none")


def _project(weights: torch.Tensor, labels: dict[str, list[str]]) -> dict[str, Any]:
    centred = (weights - weights.mean(0)).double()  # (Q, 3RD)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = s.square() / s.square().sum()
    total = centred.square().sum()
    between = {}
    for name, values in labels.items():
        groups = np.asarray(values)
        parts = [centred[torch.from_numpy(groups == group)] for group in sorted(set(values))]
        between[name] = float(sum(len(p) * p.mean(0).square().sum() for p in parts) / total)
    points = (u[:, :2] * s[:2]).tolist()
    relative = float(total.sqrt() / weights.double().norm())
    return {
        "points": [[round(x, 4) for x in point] for point in points],
        "variance": [round(float(v), 4) for v in variance[:2]],
        "between_groups": {name: round(value, 4) for name, value in between.items()},
        "relative_spread": round(relative, 4),
    }
