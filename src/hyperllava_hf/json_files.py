"""JSON files that hold one object, as every file beside a checkpoint's weights does."""

import json
from pathlib import Path
from typing import Any


def load_json(path: Path) -> dict[str, Any]:
    """Load a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If the file holds no JSON object.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); get it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def load_optional_json(path: Path) -> dict[str, Any]:
    """Load a JSON object from a file that may be missing.

    Args:
        path: The file.

    Returns:
        Its content; empty if there is no such file.

    Raises:
        ValueError: If the file holds no JSON object.
    """
    return load_json(path) if path.is_file() else {}
