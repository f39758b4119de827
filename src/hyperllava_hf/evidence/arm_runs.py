"""One run: an arm and a seed, through both stages, to its answers on validation.

Stage 1 trains the projector and the visual expert on captions, stage 2 what the regime says on
conversations. Arms whose stage 1 is the same share it: its result is kept by what decides it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load_file, save_file

from .arm_models import add_lora, build_arm_model, get_trained_weights, set_trained
from .arm_training import train_stage
from .arms import Arm
from .exact_answers import QuestionRows, score_answers
from .settings import EvidenceSettings
from .training_rows import TrainingSet

VISUAL_FIELDS = ("visual_expert", "expert_source", "expert_input_dim", "expert_hidden_dim")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name, then give it its own.

    Args:
        path: The file.
        write: Writes to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    write(partial)
    partial.replace(path)


def name_alignment(arm: Arm, seed: int) -> str:
    """Name what decides the result of stage 1.

    Args:
        arm: The arm.
        seed: The run's seed.

    Returns:
        The same name for all runs whose stage 1 is the same.
    """
    fields = arm.expert_fields
    visual = {name: fields.get(name, "first") for name in VISUAL_FIELDS}
    if visual["visual_expert"] == "none":
        visual = {"visual_expert": "none"}
    elif arm.rates.visual != 1.0:
        visual["rate"] = arm.rates.visual
    key = json.dumps([visual, arm.width, arm.dense_images, seed], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{visual['visual_expert']}-{arm.width}-{seed}-{digest}"


class RunFactory:
    """Trains runs.

    Args:
        settings: What every run shares.
        training_set: The training set.
        validation: Validation questions.
        processor: The processor.
        folder: Where stage 0, stage 1 and the runs lie.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        settings: EvidenceSettings,
        training_set: TrainingSet,
        validation: QuestionRows,
        processor: Any,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.training_set = training_set
        self.validation = validation
        self.processor = processor
        self.folder = folder
        self.device = device

    def build_model(self, arm: Arm, seed: int) -> Any:
        """Build an arm's model before stage 1.

        Args:
            arm: The arm.
            seed: The run's seed.

        Returns:
            The model.
        """
        decoder = self.folder / "stage0" / f"decoder-{arm.width}"
        return build_arm_model(arm, decoder, self.processor.image_token_id, seed)

    def train_stage(self, model: Any, arm: Arm, seed: int, stage: str) -> list[float]:
        """Train a stage in place.

        Args:
            model: The model, its trained parameters marked.
            arm: The arm.
            seed: The run's seed.
            stage: "align" or "instruct".

        Returns:
            The training losses.
        """
        settings = replace(getattr(self.settings, stage), seed=seed)
        if stage == "instruct":
            settings = replace(settings, num_steps=settings.num_steps * arm.instruct_factor)
        return train_stage(
            model,
            self.training_set,
            stage,
            settings,
            self.processor,
            arm.dense_images,
            arm.rates,
            self.device,
        )

    def align(self, model: Any, arm: Arm, seed: int) -> float:
        """Bring a model through stage 1: train it, or take what a run with the same stage 1 kept.

        Args:
            model: The model.
            arm: The arm.
            seed: The run's seed.

        Returns:
            The mean of the last training losses.
        """
        name = name_alignment(arm, seed)
        path = self.folder / "stage1" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                set_trained(model, "align")
                log = self.train_stage(model, arm, seed, "align")
                weights = get_trained_weights(model)
                loss = {"loss": str(average_last(log))}
                write_atomically(path, lambda p: save_file(weights, p, metadata=loss))
        model.load_state_dict(load_file(path), strict=False)
        return read_loss(path)

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Train and measure one run, and keep its weights.

        Args:
            arm: The arm.
            seed: The run's seed.

        Returns:
            The run's record.
        """
        start = time.perf_counter()
        model = self.build_model(arm, seed)
        align_loss = self.align(model, arm, seed)
        if arm.lora_rank:
            add_lora(model, arm.lora_rank, seed)
        num_trained = set_trained(model, arm.regime)
        log = self.train_stage(model, arm, seed, "instruct")
        weights = get_trained_weights(model)
        path = self.folder / "runs" / f"{arm.name}-{seed}.safetensors"
        write_atomically(path, lambda p: save_file(weights, p))
        model.to(self.device)
        validation = score_answers(model, self.validation, self.processor, arm.dense_images)
        return {
            "arm": arm.name,
            "seed": seed,
            "validation": validation,
            "align_loss": align_loss,
            "instruct_loss": average_last(log),
            "trained_parameters": num_trained,
            "seconds": round(time.perf_counter() - start, 1),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def load_run(self, arm: Arm, seed: int) -> Any:
        """Load a finished run's model.

        Args:
            arm: The arm.
            seed: The run's seed.

        Returns:
            The model, in evaluation mode.
        """
        model = self.build_model(arm, seed)
        if arm.lora_rank:
            add_lora(model, arm.lora_rank, seed)
        weights = load_file(self.folder / "runs" / f"{arm.name}-{seed}.safetensors")
        set_trained(model, arm.regime)
        missing = set(get_trained_weights(model)) ^ set(weights)
        if missing:
            raise ValueError(
                f"found {sorted(missing)[:3]} in one of model and file of {arm.name}, seed {seed}, "
                "expected the same names in both; remove the run's files and train it again"
            )
        model.load_state_dict(weights, strict=False)
        return model.eval()


def average_last(losses: list[float]) -> float:
    """Average the last tenth of a training's losses; batches of similar length differ much.

    Args:
        losses: The training losses.

    Returns:
        Their mean.
    """
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def read_loss(path: Path) -> float:
    """Read the training loss of a stage 1.

    Args:
        path: Its file.

    Returns:
        The loss.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return float(file.metadata()["loss"])
