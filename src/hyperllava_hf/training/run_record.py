"""What a run is: settings, model and data, so that a resume on anything else is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .settings import FREE_ON_RESUME, TrainingSettings

# Numbers of each tensor that go into a model's fingerprint.
NUM_SAMPLED = 64


def fingerprint_model(model: nn.Module) -> str:
    """Hash a model's names, shapes and some numbers of each tensor.

    Args:
        model: The model, before it is trained.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sampled = flat[:: max(1, flat.numel() // NUM_SAMPLED)][:NUM_SAMPLED].cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sampled.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_rows(rows: Any, settings: TrainingSettings) -> str:
    """Return the rows' own fingerprint; of streamed rows, a hash of names and file sizes.

    Args:
        rows: The opened rows.
        settings: The run's settings.

    Returns:
        Hexadecimal digits.
    """
    own: str | None = getattr(rows, "fingerprint", None)
    if own is not None:
        return own
    sizes = [os.path.getsize(path) if os.path.isfile(path) else -1 for path in settings.data]
    facts = [settings.data, sizes, settings.data_split, settings.data_name, settings.data_revision]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def build_record(
    settings: TrainingSettings, model_hash: str, data_hash: str, num_devices: int
) -> dict[str, Any]:
    """Build what a resumed run must agree with.

    Args:
        settings: The run's settings.
        model_hash: Of the model before training.
        data_hash: Of the rows.
        num_devices: Devices.

    Returns:
        JSON values.
    """
    return {
        "settings": settings.to_dict(),
        "model_fingerprint": model_hash,
        "data_fingerprint": data_hash,
        "num_devices": num_devices,
    }


def find_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Compare a checkpoint's record with that of the run that would go on.

    Args:
        found: The checkpoint's.
        expected: The run's.

    Returns:
        One line a difference that could change the weights.
    """
    old, new = found["settings"], expected["settings"]
    differences = [
        f"{name}: the checkpoint has {old.get(name)!r}, this run {new.get(name)!r}"
        for name in sorted({*old, *new} - FREE_ON_RESUME - {"data", "model", "revision"})
        if old.get(name) != new.get(name)
    ]
    if found["data_fingerprint"] != expected["data_fingerprint"]:
        differences.append(
            f"data: other rows than the checkpoint's (was {', '.join(old['data'])}, fingerprint "
            f"{found['data_fingerprint'][:12]}; is {', '.join(new['data'])}, "
            f"{expected['data_fingerprint'][:12]})"
        )
    if found["model_fingerprint"] != expected["model_fingerprint"]:
        differences.append(
            f"model: another model than the checkpoint started from (was {old['model']}, "
            f"fingerprint {found['model_fingerprint'][:12]}; is {new['model']}, "
            f"{expected['model_fingerprint'][:12]})"
        )
    if found["num_devices"] != expected["num_devices"]:
        differences.append(
            f"devices: the checkpoint has {found['num_devices']}, this run "
            f"{expected['num_devices']}"
        )
    return differences


def raise_if_different(
    checkpoint: object, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Refuse to go on with a checkpoint of another run.

    Args:
        checkpoint: Its folder, to name it.
        found: Its record.
        expected: The run's record.

    Raises:
        ValueError: If anything that could change the weights differs; every difference is named.
    """
    differences = find_differences(found, expected)
    if differences:
        raise ValueError(
            f"{checkpoint} is of another run:\n"
            + "\n".join(f"- {line}" for line in differences)
            + "\nGo on with the settings, data and model that it was made with, or name another "
            "--output."
        )
