"""4-bit and 8-bit weights through bitsandbytes: what stays unquantised, and CPU weights kept exact.

Only the decoder's linear layers are quantised. The vision tower, the projector and the head stay as
they are whatever list the user gives; the experts are bare parameters, which no quantiser swaps.

Unusual: on a CPU with AVX512-BF16, bitsandbytes repacks a 4-bit layer at its first inference. As of
0.50.2 repacked weights are saved wrongly, without a word, and stop the gradient. Each such layer
therefore keeps its own scales (an eighth of its weights' size, a thirtieth if they are quantised
too), and is put back as it was before it is saved or trained.
"""

import copy
import inspect
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

PARTS = ("vision_tower", "multi_modal_projector", "lm_head")
# transformers 5 compares a name with the start or the end of a module's, 4.57 with the whole or
# with "name.": so each is listed as it stands in the model with and without head.
SKIPPED_MODULES = (*PARTS, *(f"model.{part}" for part in PARTS if part != "lm_head"))

# What the repacking changes of a layer's quantisation state.
_SCALES = ("absmax", "state2", "offset", "nested", "dtype")


def _read(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def complete_quantization_config(quantization_config: Any) -> Any:
    """Add the parts that stay unquantised to a bitsandbytes configuration's skip list.

    Args:
        quantization_config: What the user gave: a configuration, its fields as a dictionary, or
            another quantiser's configuration.

    Returns:
        Any: A copy with the union of both lists; another quantiser's configuration as it is.
    """
    if not any(_read(quantization_config, name) for name in ("load_in_4bit", "load_in_8bit")):
        return quantization_config
    given = _read(quantization_config, "llm_int8_skip_modules") or []
    skipped = list(dict.fromkeys([*given, *SKIPPED_MODULES]))
    completed = copy.deepcopy(quantization_config)
    if isinstance(completed, dict):
        completed["llm_int8_skip_modules"] = skipped
    else:
        completed.llm_int8_skip_modules = skipped
    return completed


def complete_loading_keywords(
    kwargs: dict[str, Any], stored_fields: dict[str, Any]
) -> dict[str, Any]:
    """Complete what `from_pretrained` was told of quantisation.

    Args:
        kwargs: Its keywords.
        stored_fields: The checkpoint's `config.json`.

    Returns:
        dict[str, Any]: The keywords with a complete skip list, and with the dtype of the weights
            that stay unquantised where the caller named none: the compute dtype, or that of an
            already quantised checkpoint.
    """
    kwargs = dict(kwargs)
    given = kwargs.get("quantization_config")
    if given is None and (kwargs.get("load_in_4bit") or kwargs.get("load_in_8bit")):
        # 4.57's older spelling.
        names = [
            name for name in inspect.signature(BitsAndBytesConfig).parameters if name in kwargs
        ]
        given = BitsAndBytesConfig(**{name: kwargs.pop(name) for name in names})
    if given is not None:
        kwargs["quantization_config"] = complete_quantization_config(given)
    if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
        if stored_fields.get("quantization_config"):
            kwargs["dtype"] = "auto"  # 4.57 would take float16
        elif given is not None and _read(given, "load_in_4bit"):
            kwargs["dtype"] = _read(given, "bnb_4bit_compute_dtype") or "float32"
    return kwargs


def protect_cpu_layers(model: nn.Module) -> None:
    """Let the 4-bit layers of a CPU be saved and trained as they were loaded.

    Args:
        model: A loaded model, quantised or not.
    """
    module: Any
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        repacks = getattr(module, "support_avx512bf16_for_cpu", False)
        if state is None or not repacks or module.weight.device.type != "cpu":
            continue
        height, width = state.shape
        if height % 32 or width % state.blocksize:
            # The repacked layout takes whole tiles alone, and stops at other shapes.
            module.support_avx512bf16_for_cpu = False
            continue
        # References, so nothing is kept twice until a layer is repacked.
        module.loaded_scales = {name: getattr(state, name, None) for name in _SCALES}
        module.register_forward_pre_hook(_unpack_for_gradient)
        module.register_state_dict_pre_hook(_unpack_for_saving)


def _unpack_for_gradient(module: Any, args: tuple[Any, ...]) -> None:
    if module.training or any(getattr(arg, "requires_grad", False) for arg in args):
        _unpack(module)


def _unpack_for_saving(module: Any, *_: Any) -> None:
    _unpack(module)


def _unpack(module: Any) -> None:
    state = module.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    try:
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
    except ImportError as error:
        raise RuntimeError(
            "Found a 4-bit layer in bitsandbytes' CPU layout, and no function to undo that "
            "layout, expected that of bitsandbytes 0.50. Load the model again, and save or train "
            "it before its first answer; or install bitsandbytes==0.50.2."
        ) from error
    state.original_nested = False  # the kept scales are exact, so none need to be made anew
    module.weight.data, _ = _convert_weight_packed_for_cpu_inverse(module.weight.data, state)
    for name, value in module.loaded_scales.items():
        setattr(state, name, value)
