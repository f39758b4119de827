"""The model that a run starts from: checkpoint, experts, precision, LoRA, and what is trained.

Trained weights are float32 wherever arithmetic is mixed: a step of 2e-5 vanishes in 8 bits of
mantissa. Frozen weights stay in the recipe's dtype, or in 4 bits.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..checkpoints import find_config, get_bundled_checkpoint, resolve_checkpoint
from ..inspection.tensor_headers import load_tensor_headers
from ..json_files import load_json
from ..modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from ..modeling.checkpoint_hyperllava import is_expert_key
from ..processing import HyperLlavaProcessor
from .lora import WHOLE_MODULES, lora_config
from .settings import TrainingSettings
from .stages import set_trainable

BUNDLED = "digits"
EXPERT_SIZES = ("expert_input_dim", "expert_hidden_dim")
# What a setting needs beside the package itself: (module, what to install).
NEEDED_PACKAGES = {
    "lora": ("peft", "peft"),
    "four_bit": ("bitsandbytes", "bitsandbytes"),
    "8bit": ("bitsandbytes", "bitsandbytes"),
    "32bit": ("bitsandbytes", "bitsandbytes"),
    "zero2": ("deepspeed", "deepspeed"),
    "zero3": ("deepspeed", "deepspeed"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
}


def raise_if_packages_missing(settings: TrainingSettings) -> None:
    """Check that what the settings need is installed, before anything is loaded.

    Args:
        settings: The run's settings.

    Raises:
        ValueError: If a package is missing.
    """
    wanted = {
        settings.language_model,
        settings.sharding,
        # bitsandbytes' optimisers are named for their bits.
        settings.optimizer.rpartition("_")[2],
        *settings.report_to,
    }
    if settings.four_bit:
        wanted.add("four_bit")
    for name in sorted(wanted & NEEDED_PACKAGES.keys()):
        module, package = NEEDED_PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"the setting {name} needs the package {package}, which is not installed; "
                f"pip install {package}"
            )


def locate_model(settings: TrainingSettings) -> str:
    """Find the checkpoint that a run starts from.

    Args:
        settings: The run's settings.

    Returns:
        What `from_pretrained` takes.

    Raises:
        ValueError: If no model is named, or none has that name.
    """
    if settings.model is None:
        raise ValueError("no model is named; expected --model FOLDER or --model USER/NAME")
    if settings.model == BUNDLED:
        return get_bundled_checkpoint()
    return resolve_checkpoint(settings.model)


def raise_if_experts_resized(settings: TrainingSettings) -> None:
    """Refuse other sizes for experts that the checkpoint already has, before anything is loaded.

    Args:
        settings: The run's settings.

    Raises:
        ValueError: If there is no such checkpoint, or `experts` asks for a size that the
            checkpoint's own experts do not have.
    """
    name = locate_model(settings)
    config = load_json(find_config(name, settings.revision))
    wanted = {field: settings.experts.get(field, config.get(field)) for field in EXPERT_SIZES}
    differing = [
        f"experts.{field}: found {value}, expected {config[field]}"
        for field, value in wanted.items()
        if config.get(field, value) != value
    ]
    if differing and any(map(is_expert_key, load_tensor_headers(name, settings.revision))):
        raise ValueError(
            f"{'; '.join(differing)}, since the experts of {name} have these sizes already. "
            "Choose sizes for the first run from a LLaVA, or leave them out"
        )


def get_mixed_precision(settings: TrainingSettings) -> str:
    """Choose the arithmetic of a run.

    Args:
        settings: The run's settings.

    Returns:
        "no", "bf16" or "fp16".
    """
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if settings.dtype == "float16":
        return "fp16"
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 or settings.dtype == "bfloat16" else "no"


def load_processor(settings: TrainingSettings) -> HyperLlavaProcessor:
    """Load the processor, with the images as the recipe has them.

    Args:
        settings: The run's settings.

    Returns:
        The processor.
    """
    chosen = {} if settings.pad_images is None else {"do_pad": settings.pad_images}
    return HyperLlavaProcessor.from_pretrained(
        locate_model(settings), revision=settings.revision, **chosen
    )


def load_base(settings: TrainingSettings, four_bit: bool = False, device: Any = None) -> Any:
    """Load the checkpoint as a HyperLLaVA, with fresh experts drawn from the run's seed.

    Args:
        settings: The run's settings.
        four_bit: Whether to quantise the decoder.
        device: Where a quantised model is put.

    Returns:
        The model in the recipe's dtype.
    """
    keywords: dict[str, Any] = dict(settings.experts)
    dtype = getattr(torch, settings.dtype)
    if settings.attn_implementation is not None:
        keywords["attn_implementation"] = settings.attn_implementation
    if four_bit:
        from ..quantization import four_bit_config

        keywords["quantization_config"] = four_bit_config(dtype)
        if device is not None and torch.device(device).type != "cpu":
            keywords["device_map"] = {"": device}
    # Left set by an earlier run, it has ZeRO-3 share out the weights of every model that is loaded.
    unset_hf_deepspeed_config()
    set_seed(settings.seed)
    return HyperLlavaForConditionalGeneration.from_pretrained(
        locate_model(settings), revision=settings.revision, dtype=dtype, **keywords
    )


def add_lora(model: Any, settings: TrainingSettings) -> Any:
    """Put a LoRA beside the decoder's linear layers.

    Args:
        model: A HyperLLaVA.
        settings: The run's settings.

    Returns:
        PEFT's model around it.
    """
    from peft import get_peft_model

    there = [
        name
        for name in WHOLE_MODULES
        if any(item.rpartition(".")[2] == name for item, _ in model.named_modules())
    ]
    config = lora_config(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        modules_to_save=there,
    )
    return get_peft_model(model, config)


def prepare_for_training(model: Any, settings: TrainingSettings) -> Any:
    """Choose what is trained, and give it the precision that training takes.

    Args:
        model: A loaded HyperLLaVA.
        settings: The run's settings.

    Returns:
        The model, wrapped by PEFT where there is a LoRA.
    """
    for config in (model.config, model.config.text_config):
        config.use_cache = False  # it would be filled, and thrown away, at every step
    if settings.language_model == "lora":
        model = add_lora(model, settings)
    set_trainable(model, settings.stage, settings.language_model)
    if get_mixed_precision(settings) != "no":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model


def load_for_training(settings: TrainingSettings, device: Any = None) -> Any:
    """Load what a run trains.

    Args:
        settings: The run's settings.
        device: Where a quantised model is put; others are moved by the Trainer.

    Returns:
        The model, what is trained marked.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or a package or the device for it is
            missing.
    """
    raise_if_packages_missing(settings)
    if get_mixed_precision(settings) == "fp16" and not torch.accelerator.is_available():
        raise ValueError(
            f"dtype = {settings.dtype!r}, mixed_precision = {settings.mixed_precision!r}: float16 "
            "arithmetic needs a GPU, and none was found; expected float32 or bfloat16 on a CPU"
        )
    model = load_base(settings, settings.four_bit, device)
    return prepare_for_training(model, settings)


def build_without_values(settings: TrainingSettings) -> Any:
    """Build what a run trains on the meta device, to count it without its memory.

    Args:
        settings: The run's settings.

    Returns:
        The model, what is trained marked; its weights have no values.
    """
    raise_if_packages_missing(settings)
    config = HyperLlavaConfig.from_pretrained(
        locate_model(settings), revision=settings.revision, **settings.experts
    )
    with torch.device("meta"):
        model = HyperLlavaForConditionalGeneration(config)
    return prepare_for_training(model, settings)
