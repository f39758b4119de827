"""`config.json` for other tools: the published llava-hf form, and original LLaVA's."""

from typing import Any

from hyperllava_hf.conversion.config_faults import SELECT_STRATEGIES
from hyperllava_hf.conversion.config_fields import raise_faults, read_dtype
from hyperllava_hf.conversion.config_translation import (
    normalize_llava_hf_config,
    with_dtype,
)


def build_llava_hf_config(config: Any) -> dict[str, Any]:
    """Build the configuration of a llava-hf folder.

    Args:
        config: A HyperLLaVA's or LLaVA's configuration, or its fields.

    Returns:
        Fields without experts and without remote code. The number format is named `torch_dtype`,
        as in the published repositories, which readers older and newer than 4.57 understand.
    """
    fields = normalize_llava_hf_config(_as_dict(config))
    exported = with_dtype(fields, fields.get("dtype"), "torch_dtype")
    return dict(sorted((exported | {"ignore_index": -100}).items()))


def build_llava_config(
    config: Any, vocab_size: int, vision_tower_name: str, image_aspect_ratio: str = "pad"
) -> dict[str, Any]:
    """Build the configuration of an original LLaVA folder.

    Args:
        config: A HyperLLaVA's or LLaVA's configuration, or its fields.
        vocab_size: Rows of the written embeddings.
        vision_tower_name: Hub id or path from which LLaVA's code builds the tower.
        image_aspect_ratio: "pad" for images padded to a square, "square" for CLIP's resize and
            crop.

    Returns:
        Fields as LLaVA-1.5's own code writes them.

    Raises:
        ValueError: If the original cannot express the model; the message lists every fault.
    """
    fields = normalize_llava_hf_config(_as_dict(config))
    text, vision = fields["text_config"], fields["vision_config"]
    raise_faults("this model has no form in original LLaVA", _export_faults(fields))
    features = {strategy: feature for feature, strategy in SELECT_STRATEGIES.items()}
    dropped = ("architectures", "dtype", "model_type", "pad_token_id")
    exported = {
        **{name: value for name, value in text.items() if name not in dropped},
        "_name_or_path": "",
        "architectures": ["LlavaLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": image_aspect_ratio,
        "image_grid_pinpoints": None,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": features[fields["vision_feature_select_strategy"]],
        "mm_vision_select_layer": fields["vision_feature_layer"],
        "mm_vision_tower": vision_tower_name,
        "model_type": "llava",
        # As released; the padding token of the converted folder is no row of this one.
        "pad_token_id": 0,
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
        "vocab_size": vocab_size,
    }
    dtype = read_dtype(fields)
    return dict(sorted((exported | ({"torch_dtype": dtype} if dtype else {})).items()))


def _as_dict(config: Any) -> dict[str, Any]:
    return config if isinstance(config, dict) else config.to_dict()


def _export_faults(fields: dict[str, Any]) -> list[str]:
    faults = []
    if fields["projector_hidden_act"] != "gelu":
        faults.append(
            f"projector_hidden_act: found {fields['projector_hidden_act']!r}, expected 'gelu'"
        )
    if not fields["multimodal_projector_bias"]:
        faults.append("multimodal_projector_bias: found false, expected true")
    if not isinstance(fields["vision_feature_layer"], int):
        faults.append(
            f"vision_feature_layer: found {fields['vision_feature_layer']!r}, expected one layer"
        )
    return faults
