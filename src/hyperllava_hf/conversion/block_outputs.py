"""What each block of a model computes: kept for one model, compared as the other computes it.

A block is the embedding, a layer or a norm of the vision tower, the projector, a block or the norm
of the decoder, or the head, whose output are the logits.
"""

import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .block_loading import get_canonical_name

BLOCK = re.compile(
    r"lm_head|model\.multi_modal_projector|model\.language_model\.(embed_tokens|layers\.\d+|norm)"
    r"|model\.vision_tower\.vision_model"
    r"\.(embeddings|pre_layrnorm|encoder\.layers\.\d+|post_layernorm)"
)
HEAD, EMBEDDING = "lm_head", "model.language_model.embed_tokens"


@dataclass(frozen=True)
class OutputDifference:
    """How far one block's output is from the other model's.

    Attributes:
        row: the input's name.
        block: the block's name.
        largest: the largest absolute difference; infinite where only one side is a number.
        index: where it is in the output.
        scale: the largest absolute finite value of the expected output.
    """

    row: str
    block: str
    largest: float
    index: tuple[int, ...]
    scale: float


def measure_difference(
    found: torch.Tensor, expected: torch.Tensor
) -> tuple[float, tuple[int, ...], float]:
    """Measure how far two tensors are apart.

    Args:
        found: any floating-point tensor.
        expected: a tensor of the same shape.

    Returns:
        The largest absolute difference, its index, and the largest finite value expected. Equal
        values, NaN among them, differ by 0; a NaN and a number differ infinitely.
    """
    if found.numel() == 0:
        return 0.0, (), 0.0
    difference = (found - expected).abs_()
    scale = float(expected.abs().max())
    place = int(difference.argmax())  # a NaN counts as the largest
    if not (math.isfinite(scale) and math.isfinite(float(difference.flatten()[place]))):
        difference[(found == expected) | (found.isnan() & expected.isnan())] = 0
        difference.nan_to_num_(nan=float("inf"), posinf=float("inf"))
        place = int(difference.argmax())
        scale = float(expected.abs().nan_to_num_(nan=0.0, posinf=0.0).max())
    index = tuple(int(n) for n in torch.unravel_index(torch.tensor(place), difference.shape))
    return float(difference.flatten()[place]), index, scale


class OutputStore:
    """The block outputs of one run.

    Args:
        folder: where they are written to, None to keep them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, str], torch.Tensor | Path] = {}

    def put(self, row: str, block: str, output: torch.Tensor) -> None:
        """Keep an output.

        Args:
            row: the input's name.
            block: the block's name.
            output: what it computed.
        """
        if self.folder is None:
            self._kept[row, block] = output.clone()
            return
        path = self.folder / f"{len(self._kept)}.pt"
        torch.save(output.clone(), path)
        self._kept[row, block] = path

    def get(self, row: str, block: str) -> torch.Tensor:
        """Return an output.

        Args:
            row: the input's name.
            block: the block's name.

        Returns:
            What was kept.
        """
        kept = self._kept[row, block]
        if isinstance(kept, Path):
            loaded: torch.Tensor = torch.load(kept, weights_only=True)
            return loaded
        return kept


def watch_blocks(
    model: nn.Module, observe: Callable[[str, torch.Tensor], None]
) -> list[RemovableHandle]:
    """Call back with what each block computes.

    Args:
        model: a LLaVA or HyperLLaVA.
        observe: takes the block's name and its output.

    Returns:
        Handles that undo it.
    """
    handles = []
    for path, module in model.named_modules():
        name = get_canonical_name(path)
        if BLOCK.fullmatch(name) is None:
            continue

        def look(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            # CLIP's layers return tuples on transformers 4.57.
            observe(name, output[0] if isinstance(output, tuple) else output)

        handles.append(module.register_forward_hook(look))
    return handles


def open_store(in_memory: bool, scratch: Path | None) -> tuple[OutputStore, Callable[[], None]]:
    """Open a place for outputs.

    Args:
        in_memory: whether there is memory for all of them.
        scratch: folder for a temporary folder, None for the system's.

    Returns:
        The store, and what to call when it is no longer needed.
    """
    if in_memory:
        return OutputStore(None), lambda: None
    folder = tempfile.TemporaryDirectory(prefix="hyperllava-verify-", dir=scratch)
    return OutputStore(Path(folder.name)), folder.cleanup
