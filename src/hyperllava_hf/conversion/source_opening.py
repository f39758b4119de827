"""Find out what a source is: its layout, its files, and what else it needs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..checkpoints import HUB_ID
from .checkpoint_files import find_weights, load_config
from .source_parts import SourceParts
from .tensor_files import list_all_tensors

LAYOUTS = {
    "llava": "the original LLaVA's",
    "llava-hf": "transformers' LLaVA",
    "projector": "the projector of stage 1 (mm_projector.bin)",
    "lora": "a LoRA adapter with non_lora_trainables.bin",
    "delta": "delta weights, to be added to a base",
    "zero": "a DeepSpeed ZeRO-2 or ZeRO-3 checkpoint",
    "fork": "a LLaVA fork with experts",
    "hyperllava": "HyperLLaVA",
}
# Layouts that are completed with --base-llm.
LEANING = ("projector", "lora", "delta")
ORIGINAL_TYPES = ("llava", "llava_llama")
PROJECTOR = "mm_projector.bin"
NON_LORA = "non_lora_trainables.bin"
TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "README.md", "LICENSE*")
WEIGHT_FILES = ("model*.safetensors", "adapter_model.safetensors")
PICKLED_FILES = ("pytorch_model*.bin", "adapter_model.bin", NON_LORA, PROJECTOR)


@dataclass(frozen=True)
class SourceRequest:
    """What the user says about a source.

    Attributes:
        source: folder, file or Hub id.
        layout: one of LAYOUTS, or None to find out.
        base_llm: folder or Hub id of the LLM (or LLaVA) to complete the source with.
        vision_tower: folder or Hub id of the CLIP tower.
        revision: branch, tag or commit of a source on the Hub.
    """

    source: str
    layout: str | None = None
    base_llm: str | None = None
    vision_tower: str | None = None
    revision: str | None = None


def locate(name: str, revision: str | None = None) -> Path:
    """Find a folder or file, downloading a Hub repository's.

    Args:
        name: folder, file or Hub id.
        revision: branch, tag or commit on the Hub.

    Returns:
        A path on this machine.

    Raises:
        ValueError: if there is no such folder and the name is no Hub id, or the download failed.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"found no folder {name}; expected a folder or a Hub id such as user/name")

    def download(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns)
            )
        )

    try:
        folder = download(*TEXT_FILES, *WEIGHT_FILES)
        has_weights = any(folder.glob("*.safetensors"))
        # Pickles are fetched only where there is nothing else.
        return folder if has_weights else download(*TEXT_FILES, *PICKLED_FILES)
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name} is no folder here and could not be downloaded ({reason}); expected a folder, "
            "or a repository that you can reach"
        ) from error


def detect_layout(path: Path, config: Mapping[str, Any]) -> str:
    """Find the layout of a folder from its files, its configuration and its keys.

    Args:
        path: a folder, or a projector's file.
        config: the content of its config.json.

    Returns:
        One of LAYOUTS, or "llama" or "clip" for what a source leans on.

    Raises:
        ValueError: if it is none of them.
    """
    if path.is_file():
        return "projector"
    if (path / "adapter_config.json").is_file():
        return "lora"
    weights = find_weights(path)
    if not weights:
        if (path / PROJECTOR).is_file():
            return "projector"
        if (path / "latest").is_file() or any(path.glob("global_step*")):
            return "zero"
        raise ValueError(
            f"found no weights in {path}; expected model.safetensors, pytorch_model.bin or their "
            f"shards, {PROJECTOR}, an adapter or a DeepSpeed checkpoint"
        )
    model_type = config.get("model_type")
    if model_type == "hyperllava":
        return "hyperllava"
    if model_type in ("clip", "clip_vision_model"):
        return "clip"
    keys = list_all_tensors(weights).keys()
    if any("multi_modal_projector." in key for key in keys):
        return "llava-hf"
    if any("mm_projector." in key for key in keys):
        has_experts = any(re.search("(visual|language)_expert", key) for key in keys)
        if has_experts:
            return "fork"
        return "delta" if "delta" in path.name.lower() else "llava"
    if model_type == "llama":
        return "llama"
    raise ValueError(
        f"{path} has model_type {model_type!r} and no projector among its {len(keys)} tensors; "
        f"expected one of: {', '.join(LAYOUTS)}. Name one with --layout if the keys are in it"
    )


def open_part(path: Path, layout: str | None = None) -> SourceParts:
    """List the files of a folder by its layout alone.

    Args:
        path: a folder, or a projector's file.
        layout: its layout, or None to find out.

    Returns:
        The files, without what the layout leans on.

    Raises:
        ValueError: if the layout is unknown or its files are missing.
    """
    folder = path if path.is_dir() else path.parent
    config = load_config(folder)
    layout = layout or detect_layout(path, config)
    if layout == "projector":
        file = path if path.is_file() else path / PROJECTOR
        return SourceParts(layout, folder, (file,), config)
    if layout == "lora":
        names = ("adapter_model.safetensors", "adapter_model.bin")
        files = tuple(folder / name for name in names if (folder / name).is_file())[:1]
        if not files or not (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"found no adapter in {folder}; expected adapter_config.json beside "
                f"{' or '.join(names)}"
            )
        if not (folder / NON_LORA).is_file():
            raise ValueError(
                f"found no {NON_LORA} in {folder}; expected it beside the adapter: "
                "it holds the projector, without which the adapter is no LLaVA. Get it from where "
                "the adapter was trained; one that `hyperllava train` left needs no conversion: "
                "the run's own command with --merge --resume leaves a whole model"
            )
        return SourceParts(layout, folder, files, config, non_lora=folder / NON_LORA)
    if layout == "zero":
        return SourceParts(layout, folder, (), config)
    weights = find_weights(folder)
    if not weights:
        raise ValueError(
            f"found no weights in {folder}; expected model.safetensors, pytorch_model.bin or their "
            "shards"
        )
    return SourceParts(layout, folder, weights, config)


def has_tower(parts: SourceParts) -> bool:
    """Tell whether a source holds a vision tower of its own."""
    files = (*parts.weights, *((parts.non_lora,) if parts.non_lora else ()))
    inside = any("vision_tower." in key for key in list_all_tensors(files))
    return inside or (parts.base is not None and has_tower(parts.base))


def complete(parts: SourceParts, request: SourceRequest) -> SourceParts:
    """Add the base and the vision tower that a source leans on.

    Args:
        parts: the source's own files.
        request: what the user says.

    Returns:
        The whole source.

    Raises:
        ValueError: if a base is missing or not wanted, or the vision tower cannot be found.
    """
    if parts.layout in LEANING:
        if request.base_llm is None:
            raise ValueError(
                f"{parts.folder} is {LAYOUTS[parts.layout]}; expected the model that it was "
                "trained from: pass --base-llm FOLDER (base_llm=...)"
            )
        base = open_part(locate(request.base_llm))
        if base.layout not in ("llama", "llava", "llava-hf"):
            raise ValueError(
                f"--base-llm {request.base_llm} has the layout {base.layout!r}; expected a Llama "
                "or a LLaVA with all its weights"
            )
        parts = replace(parts, base=base)
    elif request.base_llm is not None:
        raise ValueError(
            f"found --base-llm, but {parts.folder} has the layout {parts.layout!r}, which holds "
            "its LLM; expected it with the layouts projector, lora and delta: name one of them "
            "with --layout, or leave --base-llm out"
        )
    if has_tower(parts) and request.vision_tower is None:
        return parts
    return replace(parts, vision=_open_tower(parts, request))


def _open_tower(parts: SourceParts, request: SourceRequest) -> SourceParts:
    named = request.vision_tower
    configs = [parts.config, parts.base.config if parts.base else {}]
    if named is None:
        named = next((c["mm_vision_tower"] for c in configs if c.get("mm_vision_tower")), None)
    if named is None:
        raise ValueError(
            f"{parts.folder} holds no vision tower and its config.json names none "
            "(mm_vision_tower); pass --vision-tower FOLDER (vision_tower=...)"
        )
    beside = parts.folder / named
    try:
        path = beside if request.vision_tower is None and beside.is_dir() else locate(named)
        return open_part(path, "clip")
    except ValueError as error:
        raise ValueError(
            f"the vision tower {named} is needed, since {parts.folder} holds none: {error}. Pass "
            "--vision-tower FOLDER (vision_tower=...)"
        ) from error
