"""LoRA through PEFT: the decoder adapted, projector and experts trained whole beside it.

Names such as `q_proj` or "all-linear" would also adapt the vision tower (and "all-linear" the
projector), and no target of LoRA reaches the experts, which are bare parameters: they are trained
and saved as whole modules beside the adapter.
"""

from typing import Any

# Linear layers of the decoder's blocks and nothing else.
DECODER_LINEARS = (
    r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)
# The projector with the visual expert; the HyperNetwork and each block's part of it.
WHOLE_MODULES = ("multi_modal_projector", "language_expert")


def lora_config(**settings: Any) -> Any:
    """Return the recommended `peft.LoraConfig`.

    Args:
        **settings: Fields of `LoraConfig`, which win over the recommended ones (r=128, lora_alpha
            =256, LLaVA-1.5's own).

    Returns:
        For `peft.get_peft_model` or a trainer's `peft_config`.

    Raises:
        ImportError: If PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(
            "lora_config needs PEFT, which is not installed; pip install peft"
        ) from error
    recommended = {
        "r": 128,
        "lora_alpha": 256,
        "lora_dropout": 0.05,
        "target_modules": DECODER_LINEARS,
        "modules_to_save": list(WHOLE_MODULES),
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**recommended, **settings})
