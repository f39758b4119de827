"""Training of an arm by transformers' Trainer, over rows in an order that the seed alone decides.

Rows of similar length share a batch, as in LLaVA's recipe: the order of all arms of a seed is the
same, and so is every batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer

from ..training.step_norms import find_hypernetwork_names
from ..training.trainer_runs import RunSettings, build_training_arguments
from .rates import COMMON_RATES, Rates
from .training_rows import TrainingSet, count_system_tokens, densify_features, densify_row, pad_rows

GROUPED_BATCHES = 8


class SceneNumbers(Dataset):
    """Numbers of scenes in training order.

    Args:
        order: The numbers.
    """

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> int:
        return self.order[index]


def find_scaled_names(model: nn.Module, modality: str) -> set[str]:
    """Find the parameters whose learning rate an arm may scale.

    Args:
        model: An arm's model.
        modality: "visual" or "language".

    Returns:
        Names: of W1, B1, W2 and B2 where the modality's experts are generated, of the experts
        themselves where they are static; LoRA's count as the language modality's.
    """
    own = {name for name, _ in model.named_parameters() if f"{modality}_expert." in name}
    own = own & find_hypernetwork_names(model) or own
    if modality == "language":
        own |= {name for name, _ in model.named_parameters() if "lora_" in name}
    return own


class OrderedTrainer(Trainer):
    """A Trainer that keeps its dataset's order, and may train what is added at other rates.

    Args:
        rates: Learning rates of what is added, as multiples of the common one.
        **kwargs: As in `Trainer`.
    """

    def __init__(self, rates: Rates = COMMON_RATES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rates = rates

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimiser; what has another rate gets parameter groups of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        for modality, rate in self.rates._asdict().items():
            if rate == 1.0:
                continue
            names = find_scaled_names(self.model, modality)
            scaled = {id(p) for name, p in self.model.named_parameters() if name in names}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in scaled]
                group["params"] = [p for p in group["params"] if id(p) not in scaled]
                if own:
                    slower = {**group, "params": own, "lr": group["lr"] * rate}
                    optimizer.add_param_group(slower)
        return optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)


def order_scenes(lengths: Sequence[int], num_steps: int, batch_size: int, seed: int) -> list[int]:
    """Order scenes for a run: shuffled, then grouped by length within a few batches.

    Args:
        lengths: Tokens of each scene's row.
        num_steps: Steps of the run.
        batch_size: Rows a step.
        seed: The run's seed.

    Returns:
        num_steps * batch_size scenes; none comes back before all have been used.
    """
    rng = np.random.default_rng([seed, num_steps])
    num_rows = num_steps * batch_size
    passes = [rng.permutation(len(lengths)) for _ in range(-(-num_rows // len(lengths)))]
    order = np.concatenate(passes)[:num_rows]
    batches: list[np.ndarray] = []
    for group in np.array_split(order, range(0, num_rows, GROUPED_BATCHES * batch_size)[1:]):
        by_length = group[np.argsort([lengths[i] for i in group], kind="stable")]
        grouped = by_length.reshape(-1, batch_size)
        batches += list(grouped[rng.permutation(len(grouped))])
    return [int(i) for i in np.concatenate(batches)]


def build_collator(
    training_set: TrainingSet, stage: str, processor: Any, dense_images: bool
) -> Callable[[list[int]], dict[str, torch.Tensor]]:
    """Build the collator of a stage.

    Args:
        training_set: The training set.
        stage: "align" or "instruct".
        processor: The processor.
        dense_images: Whether rows have 7B's ratio of image to text positions.

    Returns:
        A function from scene numbers to the model's arguments; `pixel_values` are features.
    """
    tokenizer, image_token_id = processor.tokenizer, processor.image_token_id
    num_system_tokens = count_system_tokens(tokenizer) if stage == "instruct" else 0

    def collate(scenes: list[int]) -> dict[str, torch.Tensor]:
        rows = [training_set.rows[stage].get_row(scene) for scene in scenes]
        features = torch.from_numpy(np.asarray(training_set.features[scenes]))
        if dense_images:
            rows = [densify_row(*row, image_token_id, num_system_tokens) for row in rows]
            features = densify_features(features)
        return {**pad_rows(rows, tokenizer.pad_token_id), "pixel_values": features}

    return collate


def train_stage(
    model: Any,
    training_set: TrainingSet,
    stage: str,
    settings: RunSettings,
    processor: Any,
    dense_images: bool = False,
    rates: Rates = COMMON_RATES,
    device: str = "cpu",
) -> list[float]:
    """Train a stage in place.

    Args:
        model: The model, its trained parameters marked.
        training_set: The training set.
        stage: "align" or "instruct".
        settings: The stage's settings, with the run's seed.
        processor: The processor.
        dense_images: Whether rows have 7B's ratio of image to text positions.
        rates: Learning rates of what is added, as multiples of the common one.
        device: "cpu" or "cuda"; the model is back on the CPU afterwards.

    Returns:
        The training losses, each a mean over a few steps.
    """
    rows = training_set.rows[stage]
    order = order_scenes(
        np.diff(rows.ends, prepend=0).tolist(),
        settings.num_steps,
        settings.batch_size,
        settings.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = build_training_arguments(settings, Path(scratch))
        if device != "cpu":
            arguments = replace(arguments, use_cpu=False)
        arguments.disable_tqdm = True
        trainer = OrderedTrainer(
            rates=rates,
            model=model,
            args=arguments,
            train_dataset=SceneNumbers(order),
            data_collator=build_collator(training_set, stage, processor, dense_images),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    model.to("cpu")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
