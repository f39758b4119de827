"""Configuration fields of the two parts of LLaVA, in the one spelling that both lines read.

transformers 4.57 writes `rope_theta` and `rope_scaling` and cannot read 5.x's `rope_parameters`;
5.x reads both. So text configurations are brought to the older names, with every field of Llama's
and CLIP's configuration stated: what a folder means then depends on no default of any version, and
its `config.json` has the same bytes whichever line wrote it.
"""

from typing import Any

# transformers' LlamaConfig with its defaults. `num_key_value_heads` and `head_dim` follow from
# others where they are not given.
TEXT_DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": None,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": None,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32000,
}

# transformers' CLIPVisionConfig with its defaults.
VISION_DEFAULTS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 32,
    "projection_dim": 512,
}


# Fields of either part that count something.
COUNTS = (
    "head_dim",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "num_key_value_heads",
    "patch_size",
    "vocab_size",
)


# Where these are null, they follow from the others.
DERIVED_COUNTS = ("head_dim", "num_key_value_heads")


def raise_if_no_counts(fields: dict[str, Any]) -> None:
    """Check the fields that count something.

    Args:
        fields: Fields of one part.

    Raises:
        ValueError: If one is no positive integer; the message lists every fault.
    """
    found = {name: fields[name] for name in COUNTS if name in fields}
    faults = [
        f"{name}: found {value!r}, expected a positive integer"
        for name, value in found.items()
        if not (value is None and name in DERIVED_COUNTS)
        and (not isinstance(value, int) or isinstance(value, bool) or value < 1)
    ]
    raise_faults("wrong values in config.json", faults)


def normalize_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """State every field of a Llama configuration, in the spelling that both lines read.

    Args:
        config: Fields, as either line writes them; fields of other models are left out.

    Returns:
        The complete fields.
    """
    fields = {**TEXT_DEFAULTS, **{name: config[name] for name in TEXT_DEFAULTS if name in config}}
    raise_if_no_counts(fields)
    theta, scaling = _read_rope(config)
    fields["rope_theta"], fields["rope_scaling"] = theta, scaling
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    if fields["head_dim"] is None:
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **fields}


def _read_rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Read base and scaling of the rotary positions from either line's fields."""
    theta = config.get("rope_theta")
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", theta)
    kind = scaling.pop("type", None)
    scaling.setdefault("rope_type", kind or "default")
    if scaling["rope_type"] == "default":
        scaling = {}
    return (TEXT_DEFAULTS["rope_theta"] if theta is None else float(theta)), scaling or None


def normalize_vision_config(config: dict[str, Any]) -> dict[str, Any]:
    """State every field of a CLIP vision configuration.

    Args:
        config: Fields of a `clip_vision_model`; others are left out.

    Returns:
        The complete fields.
    """
    given = {name: config[name] for name in VISION_DEFAULTS if config.get(name) is not None}
    raise_if_no_counts(given)
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **VISION_DEFAULTS,
        **given,
    }


def read_dtype(config: dict[str, Any]) -> str | None:
    """Read the number format that a configuration states, by either line's name.

    Args:
        config: Fields of a `config.json`.

    Returns:
        "float16" and the like; None if none is stated.
    """
    found = config.get("dtype") or config.get("torch_dtype")
    return None if found is None else str(found).removeprefix("torch.")


def count_image_tokens(vision_config: dict[str, Any], strategy: str) -> int:
    """Count the positions that an image takes.

    Args:
        vision_config: Complete fields of the tower.
        strategy: "default" leaves out the class feature, "full" keeps it.

    Returns:
        Positions an image.
    """
    patches = (int(vision_config["image_size"]) // int(vision_config["patch_size"])) ** 2
    return patches + (strategy == "full")


def raise_faults(title: str, faults: list[str]) -> None:
    """Report all faults of a configuration together.

    Args:
        title: What cannot be done.
        faults: One line a fault: what was found, what is expected.

    Raises:
        ValueError: If there is any.
    """
    if faults:
        raise ValueError(f"{title}:\n" + "\n".join(f"- {fault}" for fault in faults))
