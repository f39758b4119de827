"""Take the experts of a model out into a file, and put them back on their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..modeling import HyperLlavaConfig
from .byte_progress import ByteProgress
from .checkpoint_files import load_config
from .convert import ConversionReport, convert
from .experts_files import hash_base, split_experts, write_experts_file
from .gathering import gather
from .meta_model import MetaModel
from .operations import count_bytes
from .plan import raise_if_keys_differ
from .shard_writer import FileRecord
from .source_opening import locate, open_part
from .staging import raise_if_full


@dataclass(frozen=True)
class ExtractionReport:
    """What was extracted.

    Attributes:
        file: the file of experts.
        record: its size and sha256.
        num_tensors: its number of tensors.
        base_identity: sha256 of the base that the experts belong to.
    """

    file: Path
    record: FileRecord
    num_tensors: int
    base_identity: str


def extract_experts(
    model: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    progress: bool = False,
) -> ExtractionReport:
    """Write a HyperLLaVA's experts alone into a file, with the identity of their base.

    Args:
        model: folder or Hub id of a HyperLLaVA.
        output: the .safetensors file to write.
        overwrite: whether a file that is there may be replaced.
        revision: branch, tag or commit on the Hub.
        progress: whether to show progress on stderr.

    Returns:
        What was written.

    Raises:
        ValueError: if the model is no whole HyperLLaVA or has no experts, or the file is there.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} has another suffix; expected a name that ends in .safetensors")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; name another file, or pass --overwrite")
    folder = locate(str(model), revision)
    parts = open_part(folder)
    if parts.layout != "hyperllava":
        raise ValueError(
            f"{model} has the layout {parts.layout!r}; expected a HyperLLaVA, which alone has "
            "experts: convert it first"
        )
    if output.resolve() in {path.resolve() for path in parts.weights}:
        raise ValueError(
            f"{output} holds the weights that are read; expected another file: a source is never "
            "written to"
        )
    gathered = gather(parts)
    config = HyperLlavaConfig.from_dict(load_config(parts.folder))
    raise_if_keys_differ(gathered, MetaModel(config).get_shapes(), parts)
    base, experts = split_experts(gathered.tensors)
    if not experts:
        raise ValueError(f"{model} has no experts to extract; expected a HyperLLaVA with some")
    raise_if_full(output.parent, sum(count_bytes(tensor) for tensor in experts.values()) + 2**20)
    total = sum(count_bytes(tensor) for tensor in base.values())
    with ByteProgress("hashing the base", total, progress) as bar:
        identity = hash_base(base, bar.advance)
    output.parent.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = config.to_diff_dict()
    record = write_experts_file(output, experts, fields, identity)
    return ExtractionReport(output, record, len(experts), identity)


def attach_experts(
    base: str | Path, experts: str | Path, output: str | Path, **options: Any
) -> ConversionReport:
    """Put experts back on the base that they belong to.

    Args:
        base: folder or Hub id of the base: a LLaVA in any layout, or a HyperLLaVA.
        experts: a file that `extract_experts` wrote.
        output: the folder to write.
        **options: as in `convert`.

    Returns:
        What was done.

    Raises:
        ValueError: if the base is another one than the experts were trained on.
    """
    return convert(base, output, experts=experts, **options)
