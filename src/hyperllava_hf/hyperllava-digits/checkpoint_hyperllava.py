"""Loading and saving under one frozen key set, on both transformers lines.

On disk and in memory a base weight has the name that transformers 4.57 gives LLaVA in memory
(`model.language_model.*`, `model.vision_tower.vision_model.*`, `model.multi_modal_projector.*`,
`lm_head.weight`), and an expert's name holds `visual_expert.` or `language_expert.`. So an
expert-free checkpoint is a LLaVA checkpoint, and LLaVA's other layouts are renamed on loading.

Unusual: a missing base weight is an error. transformers would warn and answer from random weights.
"""

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_hyperllava import EXPERT_FIELDS

logger = logging.get_logger(__name__)

EXPERT_KEY = re.compile(r"(^|\.)(visual_expert|language_expert)\.")

# Where each part of LLaVA stands in its layouts on the Hub (before and since transformers 4.52,
# and as transformers 5 has it in memory): source pattern, part. A key matches one row at most.
LLAVA_LAYOUTS = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head\.)": "language_model.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": "vision_tower.vision_model.",
    r"^(?:model\.)?multi_modal_projector\.": "multi_modal_projector.",
}

NUM_NAMED = 5


def is_expert_key(key: str) -> bool:
    """Tell an expert's parameter from the base's by its name alone.

    Args:
        key: Parameter name, as in the state dict.

    Returns:
        bool: True for an expert's.
    """
    return EXPERT_KEY.search(key) is not None


def _name_some(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:NUM_NAMED])
    return shown if len(keys) <= NUM_NAMED else f"{shown} and {len(keys) - NUM_NAMED} more"


def check_loaded_keys(
    missing: list[str], unexpected: list[str], may_drop_experts: bool, reports_missing: bool = False
) -> None:
    """Judge what a checkpoint lacked and what it held too much of.

    Args:
        missing: Keys of the model that the checkpoint lacks.
        unexpected: Keys of the checkpoint that the model lacks.
        may_drop_experts: Whether the caller chose the expert fields by keyword.
        reports_missing: Whether the caller gets the missing keys, to judge them himself.

    Raises:
        ValueError: If a base weight is missing unreported, or trained experts would be
            dropped unasked.
    """
    base = [key for key in missing if not is_expert_key(key)]
    if base and not reports_missing:
        raise ValueError(
            f"{len(base)} base weights are missing from the checkpoint: {_name_some(base)}. "
            "Expected a LLaVA or HyperLLaVA checkpoint whose config.json fits its weights; check "
            "that all files are there, and convert other layouts first."
        )
    experts = [key for key in unexpected if is_expert_key(key)]
    if experts and not may_drop_experts:
        raise ValueError(
            f"The checkpoint holds {len(experts)} expert weights that its config.json has no "
            f"place for: {_name_some(experts)}. Restore the expert fields of config.json, or pass "
            "them as keywords to load other experts on purpose."
        )
    fresh = [key for key in missing if is_expert_key(key)]
    if fresh:
        logger.warning(
            f"{len(fresh)} expert weights were not in the checkpoint; they start as the "
            "identity update."
        )
    if experts:
        logger.warning(
            f"{len(experts)} expert weights of the checkpoint are not used: {_name_some(experts)}."
        )
    others = [
        key for key in unexpected if not is_expert_key(key) and not key.startswith("lm_head.")
    ]
    if others:
        logger.warning(
            f"{len(others)} weights of the checkpoint are not used: {_name_some(others)}."
        )


@contextlib.contextmanager
def _quiet_load_report() -> Iterator[None]:
    # transformers reports missing expert keys at length; `check_loaded_keys` says it in a line. A
    # filter, because transformers 5 takes a raised level as a wish for more checks.
    def is_error(record: Any) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [
        logging.get_logger(f"transformers.{name}")
        for name in ("modeling_utils", "utils.loading_report")
    ]
    for item in loggers:
        item.addFilter(is_error)
    try:
        yield
    finally:
        for item in loggers:
            item.removeFilter(is_error)


class CheckpointFormat(PreTrainedModel):
    """Loads LLaVA and HyperLLaVA checkpoints alike, and saves the one layout."""

    # 4.57 would undo these on saving; ours are given to `from_pretrained` instead.
    _checkpoint_conversion_mapping: dict[str, str] = {}
    is_headless = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a HyperLLaVA, or turn a LLaVA into one (its experts then start as the identity).

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *model_args: As in `PreTrainedModel.from_pretrained`.
            **kwargs: As in `PreTrainedModel.from_pretrained`, and any field of the
                configuration, `language_guidance_scope="prompt"` for example.

        Returns:
            Any: The model, with the loading report if `output_loading_info` is set.

        Raises:
            ValueError: If a base weight is missing, or the checkpoint's experts contradict its
                configuration. With `output_loading_info`, missing keys are reported instead.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("key_mapping") is None:
            prefix = "" if cls.is_headless else "model."
            kwargs["key_mapping"] = {
                pattern: part if part == "lm_head." else prefix + part
                for pattern, part in LLAVA_LAYOUTS.items()
            }
        may_drop_experts = any(name in kwargs for name in EXPERT_FIELDS) or "config" in kwargs
        with _quiet_load_report():
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        check_loaded_keys(
            list(info["missing_keys"]), list(info["unexpected_keys"]), may_drop_experts, wants_info
        )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save weights, configuration and code: a folder that loads as remote code on both lines.

        Args:
            save_directory: Folder.
            **kwargs: As in `PreTrainedModel.save_pretrained`.
        """
        accepted = inspect.signature(super().save_pretrained).parameters
        if "save_original_format" in accepted:
            # The renaming done on loading would be undone on saving.
            kwargs["save_original_format"] = False
        if "safe_serialization" not in accepted:
            kwargs.pop("safe_serialization", None)
        # Shards that a laptop can hold; transformers 5 would write 50 GB.
        kwargs.setdefault("max_shard_size", "5GB")
        super().save_pretrained(save_directory, **kwargs)
