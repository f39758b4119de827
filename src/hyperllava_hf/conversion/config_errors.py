"""Values of a wrong type in a source's configuration, told apart from bugs of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

# What the libraries that read these files raise for a text where a number is due, a zero, a list.
RAISED = (StrictDataclassError, TypeError, AttributeError, ZeroDivisionError, KeyError, IndexError)
FILES = "config.json, tokenizer_config.json, tokenizer.model, preprocessor_config.json"


@contextmanager
def explain_wrong_types(folder: Path | str) -> Iterator[None]:
    """Turn what transformers raises for a configuration of wrong types into one error.

    Args:
        folder: the checkpoint's folder, or its id.

    Yields:
        Nothing: the block reads configurations.

    Raises:
        ValueError: if the block raised anything of that kind.
    """
    try:
        yield
    except RAISED as error:
        kind = type(error).__name__
        raise ValueError(
            f"a value in the configuration files of {folder} ({FILES}) is of a wrong type: {kind}: "
            f"{error}; expected files as transformers writes them: get them again"
        ) from error
