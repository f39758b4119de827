"""Merge a LoRA adapter into its base a few rows at a time, through PEFT's own arithmetic.

A LoRA update's rows depend on the same rows of B alone, so rows of the base weight are merged by
letting PEFT wrap one linear layer of just these rows, under the layer's own name (rank and alpha
patterns go by names), and merging it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..json_files import load_json
from .key_tables import DECODER_OF_LLM, LLAVA_HF, match_row, name_some
from .operations import TensorOperation, Wrapped
from .source_parts import SourceParts
from .tensor_files import StoredTensor, list_all_tensors

PART = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
NEEDED = ("lora_A", "lora_B")


@dataclass(frozen=True)
class MergeLora(Wrapped):
    """A weight plus its LoRA update.

    Attributes:
        module: name of the linear layer in the model that the adapter was trained on.
        parts: the adapter's tensors of this layer: lora_A (r, columns), lora_B (rows, r) and, for
            DoRA, lora_magnitude_vector (rows,).
        config: the content of adapter_config.json.
    """

    module: str
    parts: Mapping[str, StoredTensor]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What is done."""
        return self._join("merge LoRA")

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read."""
        return (*self.inner.sources, *self.parts.values())

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Produce rows (stop - start, columns)."""
        rows = self.inner.read_rows(start, stop)
        state = {
            f"base_model.model.{self.module}.{part}.weight": (
                tensor.load() if part == "lora_A" else tensor.read_rows(start, stop)
            )
            for part, tensor in self.parts.items()
        }
        return merge_rows(rows, self.module, state, self.config)


def merge_rows(
    rows: torch.Tensor, module: str, state: dict[str, torch.Tensor], config: Mapping[str, Any]
) -> torch.Tensor:
    """Merge an adapter into some rows of one layer.

    Args:
        rows: rows of the base weight (rows, columns).
        module: the layer's name.
        state: the adapter's tensors of these rows, under their names in the adapter's file.
        config: the content of adapter_config.json.

    Returns:
        The merged rows (rows, columns), in the base's dtype.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(rows, requires_grad=False)
    root = nn.Module()
    *path, last = module.split(".")
    place = root
    for part in path:
        place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    place.add_module(last, linear)
    named = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    settings = {name: config[name] for name in named if config.get(name) is not None}
    adapter = LoraConfig(target_modules=[module], init_lora_weights=False, **settings)
    # What PEFT draws for a new adapter is overwritten at once; the caller's generator stays. It
    # warns of every pattern that names another layer than this one.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        model = PeftModel(root, adapter)
    found = set_peft_model_state_dict(model, state)
    if found.unexpected_keys:
        raise ValueError(f"PEFT has no place for {name_some(found.unexpected_keys)}")
    merged = model.merge_and_unload().get_submodule(module).weight
    return merged.detach().contiguous()


def load_adapter_config(folder: Path) -> dict[str, Any]:
    """Load adapter_config.json and check that the merge covers what it asks for.

    Args:
        folder: the adapter's folder.

    Returns:
        Its content.

    Raises:
        ValueError: if it is no LoRA, or of a kind that is not merged row by row.
    """
    config = load_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} holds an adapter of type {config.get('peft_type')!r}; expected 'LORA'"
        )
    refused = {
        "bias": config.get("bias", "none") != "none",
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "modules_to_save": bool(config.get("modules_to_save")),
        "layer_replication": bool(config.get("layer_replication")),
    }
    wrong = sorted(name for name, found in refused.items() if found)
    if wrong:
        raise ValueError(
            f"adapter_config.json of {folder} sets {wrong[0]} to {config[wrong[0]]!r}, which is "
            "not converted; merge the adapter with PEFT first, then convert the merged model"
        )
    return config


def merge_lora(
    base: dict[str, TensorOperation], adapter: SourceParts
) -> dict[str, TensorOperation]:
    """Plan the merge of an adapter.

    Args:
        base: the base's tensors by our keys.
        adapter: the adapter's files.

    Returns:
        The base's tensors, those that the adapter changes merged.

    Raises:
        ValueError: if PEFT is not installed, or the adapter does not fit the base.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "merging LoRA needs peft, which is not installed: pip install 'hyperllava-hf[convert]'"
        ) from error
    config = load_adapter_config(adapter.folder)
    layers: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in list_all_tensors(adapter.weights).items():
        match = PART.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{adapter.weights[0]} holds {key}; expected the parts of LoRA on linear layers "
                "(lora_A, lora_B): merge the adapter with PEFT first, then convert the result"
            )
        layers.setdefault(match["module"], {})[match["part"]] = tensor
    merged = dict(base)
    for module, parts in layers.items():
        key = _find_base_key(module, base)
        raise_if_parts_differ(module, parts, base[key].shape)
        merged[key] = MergeLora(base[key], module, parts, config)
    return merged


def _find_base_key(module: str, base: Mapping[str, TensorOperation]) -> str:
    for rows in (DECODER_OF_LLM, LLAVA_HF):
        found = match_row(rows, f"{module}.weight")
        if found is not None and found[1] in base:
            return str(found[1])
    raise ValueError(
        f"the adapter changes {module}, which the base does not have; expected the base that it "
        "was trained from: pass it as --base-llm"
    )


def raise_if_parts_differ(
    module: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]
) -> None:
    """Check an adapter's tensors of one layer against the base weight.

    Args:
        module: the layer's name.
        parts: the adapter's tensors.
        shape: the base weight's shape (rows, columns).

    Raises:
        ValueError: if one is missing or has another shape.
    """
    missing = [part for part in NEEDED if part not in parts]
    if missing:
        raise ValueError(f"the adapter lacks {missing[0]} of {module}; get the adapter again")
    found = (parts["lora_B"].shape[0], parts["lora_A"].shape[1])
    if found != tuple(shape) or parts["lora_A"].shape[0] != parts["lora_B"].shape[1]:
        raise ValueError(
            f"the adapter's matrices of {module} make {found}, but the base weight is "
            f"{tuple(shape)}; expected the base that it was trained from: pass it as --base-llm"
        )
