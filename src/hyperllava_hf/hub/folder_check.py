"""Which files of a checkpoint's folder belong into a repository, and which must never go there."""

import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from hyperllava_hf.checkpoints import load_config_dict, resolve_checkpoint
from hyperllava_hf.inspection.tensor_headers import INDEX, WEIGHTS
from hyperllava_hf.json_files import load_json

# Reason to leave a file out, and the names that it holds for (of the file or of a folder above it).
LEFT_OUT = {
    "may hold a secret": (
        r"\.env(\..*)?",
        r"\.?(netrc|pypirc|npmrc|git-credentials)",
        r"(hf_)?tokens?(\.(txt|json))?",
        r"(credentials|secrets?)(\..*)?",
        r"id_(rsa|dsa|ecdsa|ed25519)(\.pub)?",
        r".*\.(pem|key|p12|pfx)",
        r"\.(ssh|aws)",
    ),
    "belongs to a training run": (
        r"optimizer.*\.(pt|bin|safetensors)",
        r"(scheduler|scaler)\.pt",
        r"rng_state.*\.pth",
        r"training_args\.bin",
        r"trainer_state\.json",
        r"(checkpoint-|global_step)\d+",
        r"zero_to_fp32\.py",
        r"runs|wandb|events\.out\.tfevents.*",
        r"logs?|.*\.log|slurm-\d+.*",
    ),
    "is a tool's own": (
        r"__pycache__|.*\.py[co]",
        r"\.(git|cache|ipynb_checkpoints|DS_Store|vscode|idea)",
        r".*\.(lock|tmp|part|incomplete|swp)",
        r".*~",
    ),
}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
TEXT_SUFFIXES = {".json", ".py", ".md", ".txt", ".jinja", ".yaml", ".yml", ".csv", ".toml", ""}
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
# Of what is searched for a token at a time, and how much of it is looked at once more.
PIECE, OVERLAP = 2**20, 2**8
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
NEEDED = {
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "tokenizer": ("tokenizer.json",),
    "settings of the tokenizer": ("tokenizer_config.json",),
}


@dataclass
class FolderFiles:
    """The files of a folder: those to push, by their path in the repository, and the others."""

    kept: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_reason(name: str) -> str | None:
    """Say why a file or folder of this name stays behind; None if it may go."""
    for reason, patterns in LEFT_OUT.items():
        if any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in patterns):
            return reason
    return None


def is_pickle(path: Path) -> bool:
    """Tell a pickle, of Python or of torch, by its name or its first bytes."""
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        return True
    if suffix in TEXT_SUFFIXES - {""} or suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    return PICKLE_START.match(start) is not None


def holds_token(path: Path) -> bool:
    """Tell whether a file that holds no tensors spells out a Hub token, whatever its name."""
    if path.suffix.lower() == ".safetensors":
        return False
    seen = b""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            seen = seen[-OVERLAP:] + piece
            if TOKEN.search(seen):
                return True
    return False


def list_files(folder: Path) -> FolderFiles:
    """Sort the files of a folder into those that may go to the Hub and those that stay.

    Args:
        folder: the checkpoint.

    Returns:
        The files; of a folder that stays as a whole, its name alone.
    """
    files = FolderFiles()
    for top, folders, names in os.walk(folder):
        for name in sorted(folders):
            path = Path(top, name).relative_to(folder).as_posix()
            reason = find_reason(name)
            if reason is None and Path(top, name).is_symlink():
                reason = "is a link to a folder"
            if reason:
                folders.remove(name)
                files.left_out[path + "/"] = reason
        for name in sorted(names):
            path = Path(top, name).relative_to(folder).as_posix()
            reason = find_reason(name)
            if reason is None and not Path(top, name).is_file():
                reason = "is no file (or a link to none)"
            if reason:
                files.left_out[path] = reason
            else:
                files.kept[path] = Path(top, name)
    files.kept = dict(sorted(files.kept.items()))
    return files


def check_weights(folder: Path, files: FolderFiles) -> None:
    """Check that the weights are whole as far as names tell; leave out shards that nothing names.

    Args:
        folder: the checkpoint.
        files: its files; stray shards move to those that are left out.

    Raises:
        ValueError: if weights are missing or doubled.
    """
    if INDEX in files.kept and WEIGHTS in files.kept:
        raise ValueError(
            f"found both {WEIGHTS} and {INDEX} in {folder}; expected one of them, since loading "
            "would take the first. Delete the one that is out of date."
        )
    named = {WEIGHTS}
    if INDEX in files.kept:
        try:
            weight_map = load_json(files.kept[INDEX])["weight_map"]
            named = set(weight_map.values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{INDEX} in {folder} is no index ({error}); save again") from error
    missing = sorted(named - set(files.kept))
    if missing:
        found = f"{INDEX} names {len(missing)} files" if INDEX in files.kept else "expected weights"
        raise ValueError(
            f"{found} that {folder} lacks: {', '.join(missing[:5])}. Copy the missing files, or "
            "save the model again with save_pretrained."
        )
    for path in [path for path in files.kept if SHARD.fullmatch(path) and path not in named]:
        del files.kept[path]
        files.left_out[path] = "is a shard that the index does not name"


def check_folder(folder: Path) -> FolderFiles:
    """Check that a folder is a whole HyperLLaVA that can be shown to others.

    Args:
        folder: the checkpoint, as `save_pretrained` wrote it.

    Returns:
        Its files.

    Raises:
        ValueError: if the folder is no checkpoint, lacks a part, or holds a pickle or a token.
    """
    if not folder.is_dir():
        raise ValueError(f"found no folder {folder}; expected one that save_pretrained wrote")
    load_config_dict(resolve_checkpoint(str(folder)))
    files = list_files(folder)
    pickles = [path for path, source in files.kept.items() if is_pickle(source)]
    if pickles:
        raise ValueError(
            f"found {len(pickles)} pickles in {folder}: {', '.join(pickles[:5])}. A pickle can run "
            "any code where it is loaded, so none is pushed: save the weights as safetensors with "
            "save_pretrained, or move the files elsewhere."
        )
    leaks = [path for path, source in files.kept.items() if holds_token(source)]
    if leaks:
        raise ValueError(
            f"found what looks like a Hub token in {', '.join(leaks[:5])}; remove it, and revoke "
            "it at huggingface.co/settings/tokens if it was ever shared"
        )
    check_weights(folder, files)
    for part, names in NEEDED.items():
        if not any(name in files.kept for name in names):
            raise ValueError(
                f"found no {part} ({names[0]}) in {folder}; expected it beside the model. Write it "
                "there with processor.save_pretrained(FOLDER)."
            )
    return files
