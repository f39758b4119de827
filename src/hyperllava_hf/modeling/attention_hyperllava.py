"""Attention kernels: transformers dispatches them; one that is missing says what to install."""

from typing import Any

from transformers.modeling_utils import PreTrainedModel

# transformers names what is missing, and on some versions stops there.
INSTALL = {
    "flash_attention_2": "pip install flash-attn --no-build-isolation",
    "flash_attention_3": "pip install kernels, and attn_implementation="
    "'kernels-community/flash-attn3'; or build flash_attn_3 from FlashAttention's sources",
    "flash_attention_4": "transformers 5 and pip install flash-attn-4",
}


class AttentionChoice(PreTrainedModel):
    """Adds to transformers' refusal of an attention implementation what would make it run."""

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        try:
            return super()._check_and_adjust_attn_implementation(
                attn_implementation, *args, **kwargs
            )
        except (ImportError, ValueError) as error:
            if attn_implementation not in INSTALL:
                raise
            raise type(error)(
                f"{error} attn_implementation={attn_implementation!r} needs an NVIDIA GPU and: "
                f"{INSTALL[attn_implementation]}. 'sdpa' and 'eager' need neither."
            ) from error
