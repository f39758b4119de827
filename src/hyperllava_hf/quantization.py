"""The recommended 4-bit setting: NF4 for the decoder's linear layers, 16 bits for the rest."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from hyperllava_hf.modeling.quantization_hyperllava import complete_quantization_config


def four_bit_config(compute_dtype: Any = None) -> BitsAndBytesConfig:
    """Build the recommended configuration for `from_pretrained(quantization_config=...)`.

    NF4 with quantised scales (double quantisation), as QLoRA has it. The vision tower, the
    projector, the experts and the head stay unquantised, in the compute dtype.

    Args:
        compute_dtype: A torch dtype or its name; bfloat16 when left out, or float16 on a GPU that
            has no bfloat16.

    Returns:
        BitsAndBytesConfig: The configuration; it needs the package bitsandbytes when it is used.
    """
    if compute_dtype is None:
        lacks_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        compute_dtype = torch.float16 if lacks_bfloat16 else torch.bfloat16
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    return complete_quantization_config(config)
