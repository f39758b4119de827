"""A checkpoint whose experts are frozen at their mean over data, written as `attach` writes one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..chat import choose_device
from ..data import ConversationCollator, DataSource, Rows, open_rows
from ..modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaProcessor
from .byte_progress import ByteProgress
from .checkpoint_files import load_config
from .convert import ConversionReport
from .experts_files import hash_base, split_experts, write_experts_file
from .experts_freeze import FROZEN_SOURCE, measure_mean_experts
from .experts_transfer import attach_experts
from .gathering import gather
from .operations import Constant, count_bytes
from .source_opening import locate, open_part
from .source_parts import SourceParts
from .staging import raise_if_inside, raise_if_taken

TEMPLATE = "vicuna_v1"


def write_frozen_checkpoint(
    model: str | Path,
    output: str | Path,
    data: Sequence[DataSource],
    *,
    num_rows: int = 512,
    batch_size: int = 4,
    device: str = "auto",
    on_bad_row: str = "stop",
    overwrite: bool = False,
    verify: bool = True,
    revision: str | None = None,
    progress: bool = False,
) -> ConversionReport:
    """Freeze a checkpoint's experts at their mean over data: a plain adapter is what is left.

    Args:
        model: Folder or Hub id of a HyperLLaVA whose experts are guided or latent.
        output: The folder to write; it appears when it is complete.
        data: Conversations like those that the frozen model is for.
        num_rows: How many rows are read, spread evenly over the data; all where there are fewer.
        batch_size: Rows a forward.
        device: A torch device, or "auto".
        on_bad_row: "stop" or "skip".
        overwrite: Whether an output that is not empty may be replaced.
        verify: Whether to compare the result with the source's base, as `attach` does.
        revision: Branch, tag or commit on the Hub.
        progress: Whether to show progress on stderr.

    Returns:
        What was written.

    Raises:
        ValueError: If the model has nothing to freeze, or the data cannot be read; nothing is then
            left of the result.
    """
    raise_if_taken(Path(output), overwrite)
    if num_rows < 1 or batch_size < 1:
        raise ValueError(
            f"found {num_rows} rows in batches of {batch_size}, expected at least one of each"
        )
    parts = open_part(locate(str(model), revision))
    if parts.layout != "hyperllava":
        raise ValueError(
            f"{model} has the layout {parts.layout!r}; expected a HyperLLaVA, which alone has "
            "experts to freeze"
        )
    raise_if_inside(Path(output), parts.folder)
    config = HyperLlavaConfig.from_dict(load_config(parts.folder))
    processor = HyperLlavaProcessor.from_pretrained(parts.folder)
    limit = config.text_config.max_position_embeddings
    reading: dict[str, Any] = {
        "processor": processor,
        "template": TEMPLATE,
        "max_length": limit,
        "on_bad_row": on_bad_row,
    }
    rows = open_rows(data, **reading)
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(
        parts.folder, dtype="auto", device_map=choose_device(device)
    )
    batches = _load_batches(loaded, rows, reading, num_rows, batch_size, progress)
    frozen = measure_mean_experts(loaded, batches)
    del loaded
    return _attach(
        parts, config, frozen, output, overwrite=overwrite, verify=verify, progress=progress
    )


def _attach(
    parts: SourceParts,
    config: HyperLlavaConfig,
    frozen: dict[str, torch.Tensor],
    output: str | Path,
    progress: bool,
    **options: bool,
) -> ConversionReport:
    """Put the frozen experts in the place of the generated ones."""
    base, experts = split_experts(gather(parts).tensors)
    dtype = next(iter(experts.values())).dtype
    total = sum(count_bytes(tensor) for tensor in base.values())
    with ByteProgress("hashing the base", total, progress) as bar:
        identity = hash_base(base, bar.advance)
    with tempfile.TemporaryDirectory(prefix="hyperllava-freeze-") as scratch:
        file = Path(scratch) / "frozen.safetensors"
        tensors = {name: Constant(value.cpu().to(dtype)) for name, value in frozen.items()}
        fields = {**config.to_diff_dict(), "expert_source": FROZEN_SOURCE}
        write_experts_file(file, tensors, fields, identity)
        return attach_experts(
            parts.folder, file, output, drop_experts=True, progress=progress, **options
        )


def _load_batches(
    model: HyperLlavaForConditionalGeneration,
    rows: Any,
    reading: dict[str, Any],
    num_rows: int,
    batch_size: int,
    progress: bool,
) -> Iterator[dict[str, torch.Tensor]]:
    """Read evenly spread rows as batches on the model's device."""
    chosen = _spread(rows, num_rows)
    loader = DataLoader(
        Subset(rows, chosen), batch_size=batch_size, collate_fn=ConversationCollator(**reading)
    )
    for batch in tqdm(loader, desc="reading guidance", disable=not progress):
        batch.pop("num_skipped_rows", None)
        moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
        yield moved


def _spread(rows: Rows, num_rows: int) -> list[int]:
    """Choose rows at even distances: a file's beginning is often of one kind."""
    count = min(num_rows, len(rows))
    return [number * len(rows) // count for number in range(count)]
