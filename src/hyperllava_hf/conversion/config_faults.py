"""What original LLaVA configurations state that this architecture cannot express, as faults."""

import re
from typing import Any

LLAVA_MODEL_TYPES = ("llava", "llava_llama")
SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
# Towers that LLaVA's forks use, by how their names end.
_OTHER_TOWERS = re.compile(r"siglip|eva|dino|intern|convnext|radio|imagebind|languagebind", re.I)
_CLIP_NAME = re.compile(r"clip[-_]?vit", re.I)


def describe_fault(name: str, value: Any, expected: str) -> str:
    """Say that a field has a value that it cannot have.

    Args:
        name: The field.
        value: What it has.
        expected: What it may have.

    Returns:
        One line.
    """
    return f"{name}: found {value!r}, expected {expected}"


def quantization_faults(config: dict[str, Any]) -> list[str]:
    """Look for quantised weights.

    Args:
        config: Fields of a `config.json`.

    Returns:
        One line a fault.
    """
    if config.get("quantization_config"):
        return ["quantization_config: found quantised weights, expected float ones; convert those"]
    return []


def decoder_faults(config: dict[str, Any]) -> list[str]:
    """Look for decoders other than Llama.

    Args:
        config: Fields of an original `config.json`.

    Returns:
        One line a fault.
    """
    faults = quantization_faults(config)
    kind = config.get("model_type")
    if kind not in LLAVA_MODEL_TYPES:
        faults.append(
            describe_fault("model_type", kind, f"{' or '.join(map(repr, LLAVA_MODEL_TYPES))}")
            + ": the decoder must be a Llama"
        )
    for name in config.get("architectures") or []:
        if "llama" not in str(name).lower():
            faults.append(describe_fault("architectures", name, "a Llama-based class"))
    if config.get("sliding_window"):
        faults.append(describe_fault("sliding_window", config["sliding_window"], "none in a Llama"))
    return faults


def vision_faults(config: dict[str, Any], vision_config: dict[str, Any]) -> list[str]:
    """Look for vision towers other than CLIP at one scale.

    Args:
        config: Fields of an original `config.json`.
        vision_config: Fields of the vision tower's configuration.

    Returns:
        One line a fault.
    """
    faults = []
    tower = config.get("mm_vision_tower", config.get("vision_tower"))
    if tower is not None:
        last = str(tower).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        if _OTHER_TOWERS.search(last) and not _CLIP_NAME.search(last):
            faults.append(describe_fault("mm_vision_tower", tower, "a CLIP vision tower"))
    if config.get("s2"):
        faults.append("s2: found features at several scales, expected one scale")
    found = vision_config.get("model_type", "clip_vision_model")
    if found != "clip_vision_model":
        faults.append(describe_fault("the vision tower's model_type", found, "'clip_vision_model'"))
    width, expected = config.get("mm_hidden_size"), vision_config.get("hidden_size")
    if width is not None and width != expected:
        faults.append(
            describe_fault("mm_hidden_size", width, f"{expected}, the width of the vision tower")
            + "; pass the tower that the model was trained with"
        )
    return faults


def multimodal_faults(config: dict[str, Any]) -> list[str]:
    """Look for other ways from the tower's features to the decoder.

    Args:
        config: Fields of an original `config.json`.

    Returns:
        One line a fault.
    """
    faults = []
    # LLaVA's code builds a single linear layer where no type is stated.
    projector = config.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        faults.append(describe_fault("mm_projector_type", projector, "'mlp2x_gelu', two layers"))
    resampler = config.get("mm_resampler_type")
    if resampler is not None:
        faults.append(describe_fault("mm_resampler_type", resampler, "none"))
    if config.get("mm_use_im_start_end"):
        faults.append(
            "mm_use_im_start_end: found true, expected false: images would have to stand between "
            "two tokens of their own in every prompt"
        )
    layer = config.get("mm_vision_select_layer")
    if not isinstance(layer, int) or isinstance(layer, bool):
        faults.append(describe_fault("mm_vision_select_layer", layer, "an integer such as -2"))
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in SELECT_STRATEGIES:
        choices = " or ".join(map(repr, SELECT_STRATEGIES))
        faults.append(describe_fault("mm_vision_select_feature", feature, choices))
    return faults
