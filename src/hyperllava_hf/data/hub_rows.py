"""Rows of a dataset on the Hub or on disk, through the `datasets` library.

Rows are taken as Arrow tables, because `datasets` would decode every image on the way to Python: a
scan reads texts and counts images without touching a pixel, and a broken image is a bad row here
rather than an exception there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from .data_source import DataSource
from .row_images import RemoteImage
from .row_stores import StoredRow

TEXT_COLUMNS = ("id", "conversations", "messages", "prompt", "completion")
IMAGE_COLUMNS = ("image", "images")
BATCH_ROWS = 256
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_JSON_TYPE = "arrow.json"
# Stands for an image that a scan has not read.
UNREAD = RemoteImage(path="unread")


class HubStore:
    """Rows of a dataset.

    Args:
        source: Its id, folder or file.
        streaming: Whether to read it without downloading it first.

    Raises:
        ImportError: If `datasets` is not installed.
        OSError: If there is no such dataset.
        ValueError: If it cannot be read, or holds no conversations.
    """

    def __init__(self, source: DataSource, streaming: bool = False) -> None:
        self.source = source
        self.name = source.path
        data = load_data(source, streaming)
        names = data.column_names
        if names is not None:
            known = [name for name in (*TEXT_COLUMNS, *IMAGE_COLUMNS) if name in names]
            if not set(known) & {"conversations", "messages", "prompt"}:
                raise ValueError(
                    f"{self.name} has the columns {names[:12]}, expected 'conversations', "
                    "'messages', or 'prompt' and 'completion'"
                )
            data = data.select_columns(known)
        self._data = data.with_format("arrow")

    def __len__(self) -> int:
        return len(self._data)

    def scan(self) -> Iterator[StoredRow]:
        """Give every row once in order, its images counted but not read.

        Yields:
            The rows.
        """
        for number, row in self._list_rows(self._data, _count_images):
            yield StoredRow(number, row)

    def can_split(self, num_parts: int) -> bool:
        """Tell whether a stream has files enough for every part.

        Args:
            num_parts: How many parts there are.

        Returns:
            False for a dataset that is not streamed: reading all of its text is cheap.
        """
        return num_parts == 1 or getattr(self._data, "num_shards", 0) >= num_parts > 1

    def stream(self, part: int = 0, num_parts: int = 1) -> Iterator[StoredRow]:
        """Give every row of a part once in order.

        Args:
            part: Which files of a streamed dataset, from 0.
            num_parts: Into how many parts its files are cut.

        Yields:
            The rows, numbered within the part.
        """
        data = self._data.shard(num_parts, part) if num_parts > 1 else self._data
        for number, row in self._list_rows(data, _read_table):
            yield StoredRow(number, self._finish(row))

    def read(self, place: int) -> StoredRow:
        """Give one row.

        Args:
            place: Its place, from 0.

        Returns:
            The row.
        """
        row = _read_table(self._data[place : place + 1])[0]
        return StoredRow(place + 1, self._finish(row))

    def _list_rows(self, data: Any, read: Any) -> Iterator[tuple[int, Any]]:
        number = 0
        for table in data.iter(batch_size=BATCH_ROWS):
            for row in read(table):
                number += 1
                yield number, row
        if not number and data is self._data:
            raise ValueError(f"{self.name} holds no rows; expected at least one conversation")

    def _finish(self, row: dict[str, Any]) -> dict[str, Any]:
        """Mark the images that only `datasets` can open."""
        if self.source.image_folder is not None:
            return row
        for name in IMAGE_COLUMNS:
            value = row.get(name)
            if value is not None:
                images = value if isinstance(value, list) else [value]
                row[name] = [_mark_remote(image) for image in images]
        return row


def _mark_remote(image: Any) -> Any:
    is_reference = isinstance(image, dict) and image.get("bytes") is None and image.get("path")
    return RemoteImage(image) if is_reference else image


def _read_table(table: Any) -> list[dict[str, Any]]:
    """Read the rows of a table; `datasets` stores contents of mixed kinds as JSON text."""
    rows = table.to_pylist()
    for field in table.schema:
        if _JSON_TYPE in str(field.type):
            for row in rows:
                row[field.name] = _parse_json(row[field.name], field.type)
    return rows


def _parse_json(value: Any, kind: Any) -> Any:
    """Parse the JSON text within a value, found by the value's Arrow type."""
    if value is None or _JSON_TYPE not in str(kind):
        return value
    if isinstance(value, list):
        return [_parse_json(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {name: _parse_json(item, kind.field(name).type) for name, item in value.items()}
    return json.loads(value)


def _count_images(table: Any) -> list[dict[str, Any]]:
    """Read the text of a table's rows, and put one stand-in an image into the image columns."""
    import pyarrow.compute as compute  # type: ignore[import-untyped]
    import pyarrow.types as types  # type: ignore[import-untyped]

    images = {}
    for name in IMAGE_COLUMNS:
        if name not in table.column_names:
            continue
        column = table.column(name)
        is_list = types.is_list(column.type) or types.is_large_list(column.type)
        kind = column.type.value_type if is_list else column.type
        if types.is_string(kind) or types.is_large_string(kind):
            continue  # paths, which are text
        if is_list:
            images[name] = compute.list_value_length(column).to_pylist()
        else:
            images[name] = [int(there) for there in compute.is_valid(column).to_pylist()]
    rows = _read_table(table.drop_columns(list(images)))
    for name, counts in images.items():
        for row, count in zip(rows, counts, strict=True):
            row[name] = [UNREAD] * (count or 0)
    return rows


def load_data(source: DataSource, streaming: bool) -> Any:
    """Load a dataset.

    Args:
        source: Its id, folder or file.
        streaming: Whether to read it without downloading it first.

    Returns:
        A `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        ImportError: If `datasets` is not installed.
        OSError: If there is no such dataset.
        ValueError: If it cannot be read.
    """
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f"{source.path} is no .json or .jsonl file, and other data needs the datasets library, "
            "which is not installed; pip install datasets"
        ) from error
    path, split = source.path, source.split
    if _is_saved(path):
        return _load_saved(datasets, path, split)
    options: dict[str, Any] = {"split": split, "streaming": streaming}
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path):
        if suffix not in _TABLES:
            raise ValueError(
                f"{path} is a file of an unknown kind; expected .json, .jsonl (.gz too), .parquet, "
                ".arrow, a folder, or the id of a dataset on the Hub"
            )
        path, options["data_files"], options["split"] = _TABLES[suffix], path, "train"
    elif not os.path.isdir(path) and not _HUB_ID.fullmatch(path):
        raise FileNotFoundError(
            f"there is no file or folder {path!r}, and it is no id of a dataset on the Hub. Check "
            "the path."
        )
    else:
        options |= {"name": source.name, "revision": source.revision}
    try:
        return datasets.load_dataset(path, **options)
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        cause = error.__cause__ or error
        raise ValueError(
            f"{source.path} cannot be read by datasets ({str(cause)[:300]}); expected a split that "
            "is there, and files of one kind whose rows have the same columns"
        ) from error


def _is_saved(path: str) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return any(os.path.isfile(os.path.join(path, n)) for n in ("state.json", "dataset_dict.json"))


def _load_saved(datasets: Any, path: str, split: str) -> Any:
    data = datasets.load_from_disk(path)
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise ValueError(
            f"{path} has no split {split!r}, expected one of {', '.join(sorted(data))}"
        )
    return data[split]
