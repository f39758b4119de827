"""Loading and saving under one frozen key set, on both transformers lines.

On disk and in memory a base weight has the name that transformers 4.57 gives LLaVA in memory
(`model.language_model.*`, `model.vision_tower.vision_model.*`, `model.multi_modal_projector.*`,
`lm_head.weight`), and an expert's name holds `visual_expert.` or `language_expert.`. So an
expert-free checkpoint is a LLaVA checkpoint, and LLaVA's other layouts are renamed on loading.

Unusual: a missing base weight is an error. transformers would warn and answer from random weights.
"""

import contextlib
import inspect
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_hyperllava import EXPERT_FIELDS
from .placement_hyperllava import complete_device_map
from .quantization_hyperllava import complete_loading_keywords, protect_cpu_layers

logger = logging.get_logger(__name__)

EXPERT_KEY = re.compile(r"(^|\.)(visual_expert|language_expert)\.")
# A weight that every block has; older files hold rotary buffers besides, which no model needs.
DECODER_BLOCK = re.compile(r"language_model\.layers\.(\d+)\.self_attn\.q_proj\.weight$")
# What a block, a layer of the tower and the projector hold, and a configuration can take away.
OWN_WEIGHT = re.compile(r"(\.layers\.\d+\..+|multi_modal_projector\.linear_\d)\.(weight|bias)$")
# Fields of LLaVA's configuration that take such weights away, by the part that has them.
SIZE_FIELDS = {
    "": ("multimodal_projector_bias",),
    "text_config": ("num_hidden_layers", "attention_bias", "mlp_bias"),
    "vision_config": ("num_hidden_layers",),
}

# Where each part of LLaVA stands in its layouts on the Hub (before and since transformers 4.52,
# and as transformers 5 has it in memory): source pattern, part. A key matches one row at most.
LLAVA_LAYOUTS = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head\.)": "language_model.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": "vision_tower.vision_model.",
    r"^(?:model\.)?multi_modal_projector\.": "multi_modal_projector.",
}

# Keywords by which a file of a repository is found.
FILE_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)

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


def read_stored_fields(config_class: Any, path: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Read what a checkpoint's `config.json` says, whatever the caller overrides.

    Args:
        config_class: `HyperLlavaConfig`.
        path: Folder or Hub id; anything else has no file.
        kwargs: Keywords of `from_pretrained`.

    Returns:
        dict[str, Any]: The fields; empty where there is no file.
    """
    if path is None:
        return {}
    options = {name: kwargs[name] for name in FILE_KEYWORDS if kwargs.get(name) is not None}
    try:
        return config_class.get_config_dict(path, **options)[0]
    except OSError:
        return {}


def raise_if_config_is_missing(path: Any, stored_fields: dict[str, Any]) -> None:
    """Refuse a folder that does not say what its decoder is: defaults would build one of 7B.

    Args:
        path: Folder or Hub id.
        stored_fields: The checkpoint's `config.json`.

    Raises:
        ValueError: If a folder has none, or it has no `text_config`.
    """
    if "text_config" not in stored_fields and (stored_fields or os.path.isdir(path or "")):
        found = "config.json without text_config" if stored_fields else "no config.json"
        raise ValueError(
            f"{path}: found {found}, expected that of a LLaVA or HyperLLaVA, as save_pretrained "
            "writes it. Get it again, or pass config=."
        )


def departs_from_file(config: Any, stored_fields: dict[str, Any]) -> bool:
    """Tell whether the caller's configuration means other experts or blocks than the checkpoint's.

    An auto class hands over what it read from the file, which is nobody's choice.

    Args:
        config: A configuration object, or None.
        stored_fields: The checkpoint's `config.json`.

    Returns:
        bool: True if it differs on purpose.
    """
    if not hasattr(config, "text_config"):
        return False
    stored = type(config).from_dict(stored_fields)
    pairs: list[tuple[Any, Any, Iterable[str]]] = [(config, stored, EXPERT_FIELDS)]
    for part, names in SIZE_FIELDS.items():
        ours, theirs = (getattr(one, part) if part else one for one in (config, stored))
        pairs.append((ours, theirs, names))
    return any(
        getattr(ours, name, None) != getattr(theirs, name, None)
        for ours, theirs, names in pairs
        for name in names
    )


def raise_if_config_is_llavas(config: Any, config_class: Any) -> None:
    """Refuse a configuration of LLaVA's own class, which says nothing of experts.

    Args:
        config: What the caller gave as `config`.
        config_class: `HyperLlavaConfig`.

    Raises:
        ValueError: If it is a configuration of another class than ours.
    """
    if hasattr(config, "text_config") and not hasattr(config, "language_expert_blocks"):
        ours = config_class.__name__
        raise ValueError(
            f"config: found a {type(config).__name__}, expected a {ours}. Make one of it with "
            f"{ours}(**config.to_dict()), or leave config out."
        )


def describe_mismatch(mismatched: Any, error: Exception) -> str:
    """Say which weights have other shapes than the configuration asks for.

    Args:
        mismatched: transformers' `mismatched_keys`: names (4.57), or names with both shapes.
        error: transformers' own, which on 4.57 tells the shapes of one weight.

    Returns:
        str: The message.
    """
    named = [
        "{} (found {}, expected {})".format(entry[0], *map(tuple, entry[1:]))
        if isinstance(entry, tuple)
        else entry
        for entry in mismatched
    ]
    first = re.search(r"size mismatch for .*", str(error))
    return (
        f"{len(named)} weights of the checkpoint have another shape than its config.json asks "
        f"for: {_name_some(named)}. {first[0] + ' ' if first else ''}Restore config.json, or "
        "leave out the keywords that change the model's sizes; ignore_mismatched_sizes=True draws "
        "these weights anew."
    )


def check_loaded_keys(
    missing: list[str], unexpected: list[str], may_drop_experts: bool, reports_missing: bool = False
) -> None:
    """Judge what a checkpoint lacked and what it held too much of.

    Args:
        missing: Keys of the model that the checkpoint lacks.
        unexpected: Keys of the checkpoint that the model lacks.
        may_drop_experts: Whether the caller chose other experts or blocks than the checkpoint's.
        reports_missing: Whether the caller gets the missing keys, to judge them himself.

    Raises:
        ValueError: If a base weight is missing unreported, or trained experts or whole decoder
            blocks would be dropped unasked.
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
    blocks = {match[1] for key in unexpected if (match := DECODER_BLOCK.search(key))}
    if blocks and not may_drop_experts:
        raise ValueError(
            f"The checkpoint holds {len(blocks)} decoder blocks that its config.json has no place "
            f"for: {', '.join(sorted(blocks, key=int)[:NUM_NAMED])}. Restore "
            "text_config.num_hidden_layers of config.json, or pass a changed configuration as "
            "config= to leave blocks out on purpose."
        )
    own = [key for key in unexpected if OWN_WEIGHT.search(key) and not is_expert_key(key)]
    if own and not may_drop_experts:
        raise ValueError(
            f"The checkpoint holds {len(own)} base weights that its config.json has no place for: "
            f"{_name_some(own)}. Restore config.json, or pass a changed configuration as config= "
            "to leave them out on purpose."
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
            ValueError: If a base weight is missing, or the checkpoint's weights contradict its
                configuration. With `output_loading_info`, missing keys are reported instead.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        prefix = "" if cls.is_headless else "model."
        if kwargs.get("key_mapping") is None:
            kwargs["key_mapping"] = {
                pattern: part if part == "lm_head." else prefix + part
                for pattern, part in LLAVA_LAYOUTS.items()
            }
        raise_if_config_is_llavas(kwargs.get("config"), cls.config_class)
        stored = read_stored_fields(cls.config_class, pretrained_model_name_or_path, kwargs)
        if kwargs.get("config") is None:
            raise_if_config_is_missing(pretrained_model_name_or_path, stored)
        changes = (*EXPERT_FIELDS, *SIZE_FIELDS[""], "text_config", "vision_config")
        may_drop_experts = any(name in kwargs for name in changes) or departs_from_file(
            kwargs.get("config"), stored
        )
        kwargs = complete_loading_keywords(kwargs, stored)
        if kwargs.get("device_map") is not None:
            kwargs["device_map"] = complete_device_map(kwargs["device_map"], prefix)
        model, info = cls._load_quietly(pretrained_model_name_or_path, *model_args, **kwargs)
        check_loaded_keys(
            list(info["missing_keys"]), list(info["unexpected_keys"]), may_drop_experts, wants_info
        )
        protect_cpu_layers(model)
        return (model, info) if wants_info else model

    @classmethod
    def _load_quietly(cls, *args: Any, **kwargs: Any) -> Any:
        with _quiet_load_report():
            try:
                return super().from_pretrained(*args, output_loading_info=True, **kwargs)
            except RuntimeError as error:
                if "mismatch" not in str(error):
                    raise
                # Both lines know the shapes, and tell them only where mismatches are allowed. The
                # first model still hangs on the frames of its error.
                traceback.clear_frames(error.__traceback__)
                kwargs = {**kwargs, "ignore_mismatched_sizes": True}
                _, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
                if not info["mismatched_keys"]:
                    raise
                raise ValueError(describe_mismatch(info["mismatched_keys"], error)) from error

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
