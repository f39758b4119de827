"""`config.json` of every kind of source, translated to LLaVA's fields in transformers' form.

Original LLaVA keeps Llama's fields and its own (`mm_*`) side by side; transformers nests a Llama's
and a CLIP's configuration. What the original's code can do and this architecture cannot (other
projectors, resamplers, towers, decoders) is refused by name, all of it in one message. Pure
dictionaries: no tensor library is imported.
"""

import re
from typing import Any

from hyperllava_hf.conversion.config_faults import (
    SELECT_STRATEGIES,
    decoder_faults,
    describe_fault,
    multimodal_faults,
    quantization_faults,
    vision_faults,
)
from hyperllava_hf.conversion.config_fields import (
    count_image_tokens,
    normalize_text_config,
    normalize_vision_config,
    raise_faults,
    read_dtype,
)

# What LLaVA-1.5's scripts pass, for folders that hold no configuration (mm_projector.bin alone).
LLAVA_15_FIELDS: dict[str, Any] = {
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
# Fields of original LLaVA that are none of Llama's.
_MULTIMODAL = re.compile(
    r"mm_.*|image_.*|(un)?freeze_mm_.*|tune_mm_.*|use_mm_proj|s2|s2_.*|vision_tower"
)


def translate_llava_config(
    config: dict[str, Any],
    vision_config: dict[str, Any],
    vocab_size: int,
    image_token_id: int,
    pad_token_id: int,
) -> dict[str, Any]:
    """Translate an original LLaVA configuration.

    Args:
        config: Fields of the original `config.json`.
        vision_config: Fields of the vision tower's configuration.
        vocab_size: Rows of the converted embeddings.
        image_token_id: Id of the image token.
        pad_token_id: Id of the padding token.

    Returns:
        Fields in transformers' form, `model_type` "llava".

    Raises:
        ValueError: If the architecture cannot express the model; the message lists every fault.
    """
    faults = [*decoder_faults(config), *vision_faults(config, vision_config)]
    faults += multimodal_faults(config)
    raise_faults("this LLaVA cannot become a HyperLLaVA", faults)
    strategy = SELECT_STRATEGIES[config.get("mm_vision_select_feature", "patch")]
    return _assemble(
        normalize_text_config(config),
        normalize_vision_config(vision_config),
        {
            "dtype": read_dtype(config),
            "image_token_index": image_token_id,
            "pad_token_id": pad_token_id,
            "vision_feature_layer": config["mm_vision_select_layer"],
            "vision_feature_select_strategy": strategy,
            "vocab_size": vocab_size,
        },
    )


def translate_llm_config(
    llm_config: dict[str, Any],
    adapter_config: dict[str, Any] | None,
    vision_config: dict[str, Any],
    vocab_size: int,
    image_token_id: int,
    pad_token_id: int,
) -> dict[str, Any]:
    """Translate the configuration of a language model that a stage-1 or LoRA folder builds on.

    Args:
        llm_config: `config.json` of the base: a Llama or an original LLaVA.
        adapter_config: `config.json` beside the projector or adapter; its multimodal fields win
            over the base's. Without any, LLaVA-1.5's are taken.
        vision_config: Fields of the vision tower's configuration.
        vocab_size: Rows of the converted embeddings.
        image_token_id: Id of the image token.
        pad_token_id: Id of the padding token.

    Returns:
        Fields in transformers' form, `model_type` "llava".

    Raises:
        ValueError: If the architecture cannot express the model; the message lists every fault.
    """
    merged = merge_llm_config(llm_config, adapter_config)
    return translate_llava_config(merged, vision_config, vocab_size, image_token_id, pad_token_id)


def merge_llm_config(
    llm_config: dict[str, Any], adapter_config: dict[str, Any] | None
) -> dict[str, Any]:
    """Put a base's text fields and an adapter's multimodal fields into one original configuration.

    Args:
        llm_config: `config.json` of the base.
        adapter_config: `config.json` beside the projector or adapter, if there is one.

    Returns:
        Fields as an original LLaVA folder states them.
    """
    adapter = adapter_config or {}
    text = {name: value for name, value in llm_config.items() if not _MULTIMODAL.fullmatch(name)}
    stated: dict[str, Any] = {}
    for config in (llm_config, adapter):
        stated |= {name: value for name, value in config.items() if _MULTIMODAL.fullmatch(name)}
    names_kind = any(name in stated for name in ("mm_vision_select_layer", "mm_projector_type"))
    # A configuration that says something is read as LLaVA reads it; defaults are for silence.
    multimodal = stated if names_kind else {**LLAVA_15_FIELDS, **stated}
    kind = adapter.get("model_type") if "llava" in str(adapter.get("model_type")) else None
    if llm_config.get("model_type") == "llama":
        kind = kind or "llava"
    return {**text, **multimodal, "model_type": kind or llm_config.get("model_type")}


def normalize_llava_hf_config(
    config: dict[str, Any],
    vocab_size: int | None = None,
    image_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """Bring a configuration in transformers' form to the spelling that both lines read.

    Args:
        config: `config.json` of a llava-hf or HyperLLaVA folder, written by either line.
        vocab_size: Rows of the converted embeddings; None keeps the source's.
        image_token_id: Id of the image token; None keeps the source's.
        pad_token_id: Id of the padding token; None keeps the source's.

    Returns:
        Fields in transformers' form, `model_type` "llava"; a HyperLLaVA's expert fields are left
        out.

    Raises:
        ValueError: If the model is of another architecture; the message lists every fault.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config")
    faults = quantization_faults(config)
    if config.get("model_type") not in ("llava", "hyperllava"):
        faults.append(
            describe_fault("model_type", config.get("model_type"), "'llava' or 'hyperllava'")
        )
    if text.get("model_type", "llama") != "llama":
        faults.append(describe_fault("text_config.model_type", text["model_type"], "'llama'"))
    if (vision or {}).get("model_type", "clip_vision_model") != "clip_vision_model":
        faults.append(
            describe_fault(
                "vision_config.model_type", (vision or {})["model_type"], "'clip_vision_model'"
            )
        )
    raise_faults("this LLaVA cannot become a HyperLLaVA", faults)
    if vision is None:
        # transformers' LlavaConfig: CLIP ViT-L/14 at 336 pixels where nothing is stated.
        from hyperllava_hf.conversion.vision_configs import find_vision_config

        vision = find_vision_config("openai/clip-vit-large-patch14-336")
    image = config.get("image_token_index", config.get("image_token_id", 32000))
    pad = config.get("pad_token_id", text.get("pad_token_id"))
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    text = normalize_text_config(
        {
            "bos_token_id": config.get("bos_token_id", 1),
            "eos_token_id": config.get("eos_token_id", 2),
        }
        | text
        | {"tie_word_embeddings": bool(tied)}
    )
    return _assemble(
        text,
        normalize_vision_config(vision),
        {
            "dtype": read_dtype(config) or read_dtype(config.get("text_config") or {}),
            "image_token_index": image if image_token_id is None else image_token_id,
            "multimodal_projector_bias": config.get("multimodal_projector_bias", True),
            "pad_token_id": pad if pad_token_id is None else pad_token_id,
            "projector_hidden_act": config.get("projector_hidden_act", "gelu"),
            "vision_feature_layer": config.get("vision_feature_layer", -2),
            "vision_feature_select_strategy": config.get(
                "vision_feature_select_strategy", "default"
            ),
            "vocab_size": text["vocab_size"] if vocab_size is None else vocab_size,
        },
    )


def build_hyperllava_config(
    llava_config: dict[str, Any],
    expert_fields: dict[str, Any] | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Build HyperLLaVA's `config.json` from a LLaVA's.

    Args:
        llava_config: What one of the other functions here returned.
        expert_fields: HyperLLaVA's own fields; defaults fill in the rest.
        dtype: Number format of the written weights; None keeps the stated one.

    Returns:
        Complete fields, with the `auto_map` of a self-contained folder; the same on both lines.

    Raises:
        ValueError: If a field is invalid or unknown; the message lists every fault.
    """
    from hyperllava_hf.modeling.configuration_hyperllava import (
        AUTO_MAP,
        EXPERT_FIELDS,
        HyperLlavaConfig,
    )

    given = expert_fields or {}
    unknown = sorted(set(given) - set(EXPERT_FIELDS))
    raise_faults(
        "unknown expert fields",
        [f"{name}: expected one of {', '.join(EXPERT_FIELDS)}" for name in unknown],
    )
    config = {
        **with_dtype(llava_config, dtype or llava_config.get("dtype")),
        **EXPERT_FIELDS,
        **given,
        "architectures": ["HyperLlavaForConditionalGeneration"],
        "auto_map": dict(AUTO_MAP),
        "model_type": "hyperllava",
    }
    checked = HyperLlavaConfig.from_dict(config)
    # Said one way only, so that two conversions of one model have equal files.
    config["language_expert_layers"] = checked.language_expert_layers
    return dict(sorted(config.items()))


def read_expert_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Read the expert fields that a HyperLLaVA's `config.json` states.

    Args:
        config: Its fields.

    Returns:
        The expert fields among them.
    """
    from hyperllava_hf.modeling.configuration_hyperllava import EXPERT_FIELDS

    return {name: config[name] for name in EXPERT_FIELDS if name in config}


def with_dtype(config: dict[str, Any], dtype: str | None, name: str = "dtype") -> dict[str, Any]:
    """State the number format in a configuration and in its two parts.

    Args:
        config: Fields in transformers' form.
        dtype: "float16" and the like; None states nothing.
        name: Name of the field.

    Returns:
        A new configuration.
    """

    def stated(fields: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in fields.items() if key not in ("dtype", "torch_dtype")}
        return dict(sorted((rest | ({name: dtype} if dtype else {})).items()))

    parts = {key: stated(config[key]) for key in ("text_config", "vision_config")}
    return stated({**config, **parts})


def describe_losses(config: dict[str, Any]) -> list[str]:
    """Name what an original LLaVA does that the converted model does in a simpler way.

    Args:
        config: Fields of the original `config.json`.

    Returns:
        One sentence a difference, for the report.
    """
    notes = []
    aspect, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type") or "flat"
    if "anyres" in str(aspect) or merge != "flat":
        notes.append(
            f"image_aspect_ratio {aspect!r} with mm_patch_merge_type {merge!r} cuts large images "
            "into tiles, which this architecture does not: every image is seen once, padded to a "
            "square (the original's base view); image_newline is not used"
        )
    if config.get("mm_use_im_patch_token"):
        notes.append(
            "mm_use_im_patch_token: the token <im_patch> keeps its row but stands in no prompt, as "
            "in the original's own inference"
        )
    return notes


def _assemble(
    text: dict[str, Any], vision: dict[str, Any], fields: dict[str, Any]
) -> dict[str, Any]:
    text = {**text, "pad_token_id": fields["pad_token_id"], "vocab_size": fields.pop("vocab_size")}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "bos_token_id": text["bos_token_id"],
        "eos_token_id": text["eos_token_id"],
        "image_seq_length": count_image_tokens(vision, fields["vision_feature_select_strategy"]),
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "vision_config": vision,
        **fields,
    }
    return with_dtype(config, fields["dtype"])
