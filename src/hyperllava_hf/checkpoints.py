"""Find a checkpoint: the bundled one, a folder, or a repository on the Hub."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from .json_files import load_json

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def get_bundled_checkpoint() -> str:
    """Return the folder of the small trained checkpoint that the package carries.

    Returns:
        A path that `from_pretrained` takes.

    Raises:
        ValueError: if this installation lacks it.
    """
    folder = Path(str(files("hyperllava_hf") / "hyperllava-digits"))
    if not (folder / "config.json").exists():
        raise ValueError(
            f"found no bundled checkpoint in {folder}; make it with `make checkpoint`, or name "
            "another checkpoint"
        )
    return str(folder)


def resolve_checkpoint(name: str | None) -> str:
    """Check that a name can be a checkpoint, before anything is loaded.

    Args:
        name: a folder, a Hub id, or None for the bundled checkpoint.

    Returns:
        What `from_pretrained` takes.

    Raises:
        ValueError: if the name is neither a folder with a config.json nor shaped like a Hub id.
    """
    if name is None:
        return get_bundled_checkpoint()
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").exists():
            return str(path)
        if (path / "adapter_config.json").exists():
            raise ValueError(
                f"{name} holds a LoRA adapter and no model; expected a whole one. The run's own "
                "train command with --merge --resume leaves one, and peft's "
                "PeftModel.from_pretrained puts the adapter on the model that it began with"
            )
        raise ValueError(
            f"found no config.json in {name}; expected the folder that save_pretrained wrote"
        )
    if path.exists():
        raise ValueError(f"{name} is a file; expected a checkpoint's folder or a Hub id")
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"found no folder {name}; expected a folder or a Hub id such as user/name")
    return name


def find_config(checkpoint: str, revision: str | None = None) -> Path:
    """Find a checkpoint's config.json, on this machine or on the Hub.

    Args:
        checkpoint: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.

    Returns:
        The file.

    Raises:
        ValueError: if there is no such folder and the Hub does not give the file.
    """
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(checkpoint, "config.json", revision=revision)))
    except OSError as error:
        if Path(checkpoint).exists():
            raise
        raise ValueError(
            f"found no folder {checkpoint} here, so it was looked for on the Hub: {error}"
        ) from error


def load_config_dict(checkpoint: str, revision: str | None = None) -> dict[str, Any]:
    """Load config.json, and check that it is a HyperLLaVA's before anything is built from it.

    Args:
        checkpoint: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.

    Returns:
        The content of config.json.

    Raises:
        ValueError: if the checkpoint is of another kind of model, or its config.json is no JSON.
    """
    config = load_json(find_config(checkpoint, revision))
    model_type = config.get("model_type")
    if model_type == "llava":
        raise ValueError(
            f"{checkpoint} is a LLaVA, which has no experts; make it a HyperLLaVA with "
            "`hyperllava convert SOURCE DEST`"
        )
    if model_type != "hyperllava":
        raise ValueError(
            f"{checkpoint} has model_type {model_type!r}; expected a checkpoint of 'hyperllava'"
        )
    return config
