"""transformers' TrainingArguments from our settings, on both lines."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_tf32_available

from .batch_plan import BatchPlan
from .model_loading import get_mixed_precision
from .settings import TrainingSettings

FSDP_CONFIG = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["HyperLlavaDecoderLayer", "CLIPEncoderLayer"],
    "reshard_after_forward": True,
    "state_dict_type": "FULL_STATE_DICT",
}


def get_precision_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Give the arguments of mixed precision, with TF32 where the device has it.

    Args:
        settings: The run's settings.

    Returns:
        Arguments by name.
    """
    precision = get_mixed_precision(settings)
    # 4.57 sets this variable for 16 bits and never takes it back, so that a later run in the same
    # process would be in 16 bits too.
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    arguments: dict[str, Any] = {"bf16": precision == "bf16", "fp16": precision == "fp16"}
    if settings.tf32 and torch.cuda.is_available() and is_torch_tf32_available():
        arguments["tf32"] = True
    return arguments


def get_sharding_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Give the arguments of FSDP2 or DeepSpeed.

    Args:
        settings: The run's settings.

    Returns:
        Arguments by name.
    """
    if settings.sharding == "fsdp2":
        # 4.57 takes the version, and what comes with it, from the environment alone.
        os.environ.setdefault("FSDP_VERSION", "2")
        os.environ.setdefault("FSDP_RESHARD_AFTER_FORWARD", "true")
        os.environ.setdefault("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": dict(FSDP_CONFIG)}
    if settings.sharding in ("zero2", "zero3"):
        path = Path(str(files("hyperllava_hf") / "recipes" / f"{settings.sharding}.json"))
        return {"deepspeed": json.loads(path.read_text(encoding="utf-8"))}
    return {}


def build_training_arguments(
    settings: TrainingSettings, plan: BatchPlan, output: Path
) -> TrainingArguments:
    """Build the Trainer's arguments.

    Args:
        settings: The run's settings.
        plan: Rows a device takes at once and accumulates.
        output: Where the Trainer writes.

    Returns:
        The arguments.
    """
    known = {item.name for item in fields(TrainingArguments)}
    ratio = settings.warmup_ratio
    # 5.x takes a share of the steps as warmup_steps below 1.
    renamed: dict[str, Any] = (
        {"warmup_ratio": ratio} if "warmup_ratio" in known else {"warmup_steps": ratio}
    )
    # 5.x calls it activation checkpointing.
    word = "activation" if "activation_checkpointing" in known else "gradient"
    renamed[f"{word}_checkpointing"] = settings.gradient_checkpointing
    renamed[f"{word}_checkpointing_kwargs"] = {"use_reentrant": False}
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=plan.device_batch_size,
        gradient_accumulation_steps=plan.num_accumulated,
        num_train_epochs=settings.num_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        # Without a limit the norm is still wanted.
        max_grad_norm=settings.max_grad_norm or float("inf"),
        lr_scheduler_type=settings.schedule,
        optim=settings.optimizer,
        average_tokens_across_devices=True,
        # Every trained parameter is used in every step, on every rank.
        ddp_find_unused_parameters=False,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_num_workers=settings.num_workers,
        dataloader_persistent_workers=settings.num_workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        full_determinism=settings.deterministic,
        seed=settings.seed,
        data_seed=settings.seed,
        **renamed,
        **get_precision_arguments(settings),
        **get_sharding_arguments(settings),
    )
