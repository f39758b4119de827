"""What a run leaves: a whole model folder, or an adapter, from the base and the trained weights.

The base is read again, on the CPU and in the recipe's dtype, and takes the trained weights: so a
run over 4 bits leaves 16-bit weights, and a sharded run the same folder as any other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..conversion.staging import stage
from ..processing import HyperLlavaProcessor
from .model_loading import load_base, load_processor, locate_model
from .settings import TrainingSettings

MODEL, ADAPTER = "model", "adapter"


def collect_trained(trainer: Any) -> dict[str, torch.Tensor]:
    """Gather what was trained on the CPU; every rank must call it.

    Args:
        trainer: A `HyperLlavaTrainer` after training.

    Returns:
        Weights by name, whole.
    """
    names = set(trainer.get_trained_weights())
    if trainer.settings.sharding == "none":
        weights = trainer.get_trained_weights()
    else:
        state = trainer.gather_state()
        weights = {name: value for name, value in state.items() if name in names}
        if trainer.is_world_process_zero() and weights.keys() != names:
            raise RuntimeError(f"gathered {len(weights)} of {len(names)} trained weights")
    return {name: value.detach().cpu() for name, value in weights.items()}


def put_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy weights into a model.

    Args:
        model: The model.
        weights: Values by parameter name.

    Raises:
        ValueError: If the model lacks one of them.
    """
    parameters = dict(model.named_parameters())
    lacking = sorted(weights.keys() - parameters.keys())
    if lacking:
        raise ValueError(
            f"the base has no place for {len(lacking)} trained weights, such as {lacking[0]}; "
            "expected the checkpoint that the run began with"
        )
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def load_whole(settings: TrainingSettings) -> Any:
    """Load the base on the CPU, unquantised and in one piece.

    Args:
        settings: The run's settings.

    Returns:
        The model.
    """
    verbosity = logging.get_verbosity()
    # That fresh experts begin as the identity was said at the start; these are filled next.
    logging.set_verbosity_error()
    try:
        with torch.device("cpu"):
            return load_base(dataclasses.replace(settings, attn_implementation=None))
    finally:
        logging.set_verbosity(verbosity)


def load_processor_of(settings: TrainingSettings) -> HyperLlavaProcessor:
    """Load the processor that goes with what the run leaves.

    Args:
        settings: The run's settings.

    Returns:
        After stage 2 the processor as the rows were made with it, template and images; after
        stage 1, whose captions are no conversations, as the checkpoint has it.
    """
    if settings.stage == "align":
        name = locate_model(settings)
        return HyperLlavaProcessor.from_pretrained(name, revision=settings.revision)
    processor = load_processor(settings)
    processor.chat_template = processor.get_chat_template(settings.chat_template)
    return processor


def save_whole(model: Any, settings: TrainingSettings, folder: Path) -> None:
    """Write a model with its processor and code, whole or not at all.

    Args:
        model: The model.
        settings: The run's settings.
        folder: The folder, which is replaced if it is there.
    """
    processor = load_processor_of(settings)
    with stage(folder, may_overwrite=True) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)


def leave_model(trainer: Any, output: Path) -> Path | None:
    """Write what the run leaves; every rank must call it.

    Args:
        trainer: A `HyperLlavaTrainer` after training.
        output: The run's folder.

    Returns:
        `output`/model, or `output`/adapter where a LoRA is not merged; None on other ranks.
    """
    settings: TrainingSettings = trainer.settings
    weights = collect_trained(trainer)
    if not trainer.is_world_process_zero():
        return None
    if settings.language_model != "lora":
        model = load_whole(settings)
        put_weights(model, weights)
        save_whole(model, settings, output / MODEL)
        return output / MODEL
    adapter = output / ADAPTER
    state = None if settings.sharding == "none" else weights
    with stage(adapter, may_overwrite=True) as work:
        trainer.model.save_pretrained(work, state_dict=state)
        load_processor_of(settings).save_pretrained(work)
    if not settings.merge:
        return adapter
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_whole(settings), adapter).merge_and_unload()
    save_whole(merged, settings, output / MODEL)
    return output / MODEL
