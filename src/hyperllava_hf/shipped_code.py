"""The code that a checkpoint's folder carries, so that it loads where this package is missing."""

from importlib.resources import files

FOLDERS = ("modeling", "processing")


def load_shipped_code() -> dict[str, bytes]:
    """Load the model's and the processor's code.

    Returns:
        Content by file name, sorted; the folders are flat in a checkpoint.
    """
    package = files("hyperllava_hf")
    found = {
        item.name: item.read_bytes()
        for folder in FOLDERS
        for item in (package / folder).iterdir()
        if item.name.endswith("_hyperllava.py")
    }
    return dict(sorted(found.items()))
