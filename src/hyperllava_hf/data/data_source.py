"""Where training rows come from: a file, or a dataset on the Hub or on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass

FORMATS = ("llava", "messages")
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class DataSource:
    """One file or dataset of rows.

    Attributes:
        path: A .json or .jsonl file (.gz too), a folder or file that the `datasets` library reads,
            or the id of a dataset on the Hub.
        image_folder: What relative image paths are relative to, and what no path may leave; None
            means the folder of the file, and then absolute paths are accepted too.
        split: Split of a dataset; files have none.
        name: Configuration of a dataset on the Hub.
        revision: Branch, tag or commit of a dataset on the Hub.
        format: "llava" or "messages"; None tells it from each row.
    """

    path: str
    image_folder: str | None = None
    split: str = "train"
    name: str | None = None
    revision: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ValueError(
                f"found the format {self.format!r} for {self.path}, expected one of "
                f"{', '.join(FORMATS)}; leave it out to have it told from the rows"
            )
        if self.image_folder is not None and not os.path.isdir(self.image_folder):
            raise ValueError(
                f"the image folder {self.image_folder!r} of {self.path} is no folder; expected "
                "the folder that the rows' image paths are relative to. Check --image-folder."
            )

    @property
    def is_json(self) -> bool:
        """Whether the path names a JSON or JSONL file."""
        return self.path.lower().endswith(JSON_SUFFIXES)

    @property
    def base_folder(self) -> str:
        """What relative image paths are relative to."""
        if self.image_folder is not None:
            return self.image_folder
        if self.is_json or os.path.isfile(self.path):
            return os.path.dirname(os.path.abspath(self.path))
        return os.path.abspath(self.path) if os.path.isdir(self.path) else os.getcwd()
