"""The configurations that the two sides of a verification run under.

As far as a source's own files state the architecture, they are read once more here rather than
taken from the conversion, so that a wrong field there shows as different logits.
"""

import copy
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from ..json_files import load_json
from .reference_weights import EMBEDDING, ReferenceWeights
from .shard_writer import INDEX
from .source_parts import SourceParts

# How Llama's rotary positions are written differs between the transformers lines.
ROPE_FIELDS = {"rope_theta", "rope_scaling", "rope_parameters"}
# Neither says what is computed; computation is in float32 whatever is stored.
NEVER = {"dtype", "torch_dtype", "architectures", "pad_token_id", "transformers_version"}
SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
LLAVA_FIELDS = (
    "image_token_index",
    "projector_hidden_act",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "multimodal_projector_bias",
    "tie_word_embeddings",
)
NESTED_LAYOUTS = ("llava-hf", "hyperllava")


def _pick(fields: dict[str, Any], config_class: Any) -> dict[str, Any]:
    known = (set(config_class().to_dict()) | ROPE_FIELDS) - NEVER
    return {name: value for name, value in fields.items() if name in known}


def find_text_fields(parts: SourceParts) -> dict[str, Any] | None:
    """Find what a source itself says of its decoder.

    Args:
        parts: the source.

    Returns:
        The fields of a Llama's configuration, None if no file of the source states them.
    """
    for part in (parts, parts.base):
        if part is None:
            continue
        fields = part.config.get("text_config") if part.layout in NESTED_LAYOUTS else part.config
        if fields and (part.layout in NESTED_LAYOUTS or "num_hidden_layers" in fields):
            return {**_pick(fields, LlamaConfig), "model_type": "llama"}
    return None


def find_vision_fields(parts: SourceParts) -> dict[str, Any] | None:
    """Find what a source itself says of its vision tower.

    Args:
        parts: the source.

    Returns:
        The fields of a CLIP tower's configuration, None if no file of the source states them.
    """
    for part in (parts.vision, parts, parts.base):
        fields = None if part is None else part.config.get("vision_config")
        if part is not None and part.layout == "clip":
            fields = fields or part.config
        if fields:
            return {**_pick(fields, CLIPVisionConfig), "model_type": "clip_vision_model"}
    return None


def build_llava_config(
    parts: SourceParts, weights: ReferenceWeights, stated: dict[str, Any]
) -> LlavaConfig:
    """Build the configuration under which transformers' LLaVA runs a source.

    Args:
        parts: the source.
        weights: its weights, which tell the vocabulary's size.
        stated: the source's configuration in the llava-hf style, for what its files leave open.

    Returns:
        The configuration.
    """
    fields = {name: stated[name] for name in LLAVA_FIELDS if name in stated}
    own = parts.config
    if "mm_vision_select_layer" in own:
        fields["vision_feature_layer"] = own["mm_vision_select_layer"]
    if own.get("mm_vision_select_feature") in SELECT_STRATEGIES:
        strategy = SELECT_STRATEGIES[own["mm_vision_select_feature"]]
        fields["vision_feature_select_strategy"] = strategy
    text = find_text_fields(parts) or stated["text_config"]
    vision = find_vision_fields(parts) or stated["vision_config"]
    text, vision = (
        {name: value for name, value in copy.deepcopy(part).items() if name not in NEVER}
        for part in (text, vision)
    )
    num_tokens = weights.shape(EMBEDDING)[0]
    if not 0 <= fields.get("image_token_index", -1) < num_tokens:
        # The placeholder's own embedding is never used: the image's features replace it.
        fields["image_token_index"] = num_tokens - 1
    text["vocab_size"] = num_tokens
    return LlavaConfig(text_config=text, vision_config=vision, **fields)


def load_result_config(destination: Path, to: str) -> Any:
    """Load the configuration of a result that transformers reads.

    Args:
        destination: the result's folder.
        to: "hyperllava" or "llava-hf".

    Returns:
        The configuration.
    """
    if to == "llava-hf":
        return LlavaConfig.from_pretrained(destination)
    from hyperllava_hf.modeling import HyperLlavaConfig

    return HyperLlavaConfig.from_pretrained(destination)


def find_result_parts(destination: Path, to: str, source: SourceParts) -> SourceParts:
    """Describe a result as a source.

    Args:
        destination: the result's folder.
        to: its layout.
        source: what it was converted from, whose tower serves a result that has none inside.

    Returns:
        The parts.

    Raises:
        ValueError: if the folder holds no weights.
    """
    index = destination / INDEX
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(load_json(index)["weight_map"].values()))
    missing = [name for name in names if not (destination / name).exists()]
    if missing:
        raise ValueError(
            f"found no {missing[0]} in {destination}; expected the whole result. Convert again"
        )
    config = load_json(destination / "config.json")
    paths = tuple(destination / name for name in names)
    vision = source.vision if to == "llava" else None
    return SourceParts(layout=to, folder=destination, weights=paths, config=config, vision=vision)
