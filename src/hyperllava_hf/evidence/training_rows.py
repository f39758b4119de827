"""The training set: scenes, read once by the frozen tower, with the token rows of both stages.

Every arm freezes the tower, so its features are computed once. Row i of a stage is scene i; glyphs
are augmented as in the bundled checkpoint's recipe. A seed decides in which order scenes are used,
and all arms of a seed use the same.

Dimensions: N scenes, P image positions, D_v width of the tower.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..processing import HyperLlavaProcessor
from ..training.hyperllava_stages import build_image_collator
from .cached_tower import read_features

FIRST_SCENE = 500 * 10**9  # no seed of the bundled checkpoint's recipe
SCENES_A_BATCH = 64
IGNORED_LABEL = -100
DENSE_SIDE = 12


@dataclass(frozen=True)
class TokenRows:
    """Token rows of different lengths, end to end.

    Attributes:
        input_ids: Token ids of all rows.
        labels: Labels of all rows, -100 where nothing is supervised.
        ends: Where each row ends.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    ends: np.ndarray

    def get_row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one row.

        Args:
            index: Its number.

        Returns:
            Token ids and labels, int64 of shape (length,).
        """
        start = int(self.ends[index - 1]) if index else 0
        end = int(self.ends[index])
        return tuple(  # type: ignore[return-value]
            torch.from_numpy(values[start:end].astype(np.int64))
            for values in (self.input_ids, self.labels)
        )


def join_rows(rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> TokenRows:
    """Put rows end to end.

    Args:
        rows: Token ids and labels of each row.

    Returns:
        The rows.
    """
    ids, labels = (
        torch.cat(list(part)).numpy().astype(np.int16) for part in zip(*rows, strict=True)
    )
    return TokenRows(ids, labels, np.cumsum([len(row[0]) for row in rows]))


@dataclass(frozen=True)
class TrainingSet:
    """What every run reads.

    Attributes:
        features: The tower's features, float32 of shape (N, 16, D_v).
        rows: Token rows by stage, "align" and "instruct".
    """

    features: np.ndarray
    rows: dict[str, TokenRows]


def build_training_set(
    processor: HyperLlavaProcessor, tower: Any, num_scenes: int, num_turns: int
) -> TrainingSet:
    """Draw and read the scenes, and word their rows.

    Args:
        processor: The processor.
        tower: The frozen vision tower.
        num_scenes: N.
        num_turns: Questions a conversation.

    Returns:
        The training set; the same arguments always give the same.
    """
    collators = {
        stage: build_image_collator(processor, stage, num_turns) for stage in ("align", "instruct")
    }
    features: list[torch.Tensor] = []
    rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {stage: [] for stage in collators}
    for start in tqdm(range(0, num_scenes, SCENES_A_BATCH), desc="training set", unit="batch"):
        stop = min(start + SCENES_A_BATCH, num_scenes)
        seeds = [FIRST_SCENE + i for i in range(start, stop)]
        for stage, collate in collators.items():
            batch = collate(seeds)
            rows[stage] += split_batch(batch)
        # Both stages show the same pictures: glyphs are augmented by the first seed of a batch.
        features.append(read_features(tower, batch["pixel_values"]))
    joined = {stage: join_rows(stage_rows) for stage, stage_rows in rows.items()}
    return TrainingSet(torch.cat(features).numpy(), joined)


def split_batch(batch: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Take the rows of a padded batch apart.

    Args:
        batch: `input_ids`, `labels` and `attention_mask`, each (B, L).

    Returns:
        Token ids and labels of each row, without padding.
    """
    attended = batch["attention_mask"].bool()
    return [
        (ids[mask], labels[mask])
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], attended, strict=True)
    ]


def save_training_set(training_set: TrainingSet, folder: Path) -> None:
    """Write a training set.

    Args:
        training_set: The training set.
        folder: An existing folder.
    """
    np.save(folder / "features.npy", training_set.features)
    for stage, rows in training_set.rows.items():
        np.savez(folder / f"{stage}.npz", **vars(rows))


def load_training_set(folder: Path) -> TrainingSet:
    """Read a training set, its features mapped from the disk.

    Args:
        folder: What `save_training_set` wrote to.

    Returns:
        The training set.
    """
    features = np.load(folder / "features.npy", mmap_mode="r")
    rows = {}
    for stage in ("align", "instruct"):
        with np.load(folder / f"{stage}.npz") as arrays:
            rows[stage] = TokenRows(**{name: arrays[name] for name in arrays.files})
    return TrainingSet(features, rows)


def densify_features(features: torch.Tensor, side: int = DENSE_SIDE) -> torch.Tensor:
    """Interpolate an image's grid of features bilinearly to a finer one.

    Args:
        features: (N, P, D_v), P a square.
        side: Rows of the finer grid.

    Returns:
        (N, side * side, D_v).
    """
    rows = round(features.shape[1] ** 0.5)
    grid = features.unflatten(1, (rows, rows)).permute(0, 3, 1, 2)  # (N, D_v, rows, rows)
    grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)  # (N, side * side, D_v)


def densify_row(
    ids: torch.Tensor, labels: torch.Tensor, image_token_id: int, num_system_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a row 7B's ratio of image to text positions in its prompt.

    `<s> SYSTEM USER: 16 x <image> question` becomes `<s> USER: 144 x <image> question`.

    Args:
        ids: Token ids with 16 image positions in one run.
        labels: Their labels.
        image_token_id: The placeholder.
        num_system_tokens: Tokens of the system sentence after `<s>`; 0 for rows without it.

    Returns:
        Token ids and labels.
    """
    image = (ids == image_token_id).nonzero().flatten()
    start, stop = int(image[0]), int(image[-1]) + 1
    dense = torch.full((DENSE_SIDE**2,), image_token_id)
    system = slice(1 + num_system_tokens, start)
    ids = torch.cat([ids[:1], ids[system], dense, ids[stop:]])
    ignored = torch.full_like(dense, IGNORED_LABEL)
    labels = torch.cat([labels[:1], labels[system], ignored, labels[stop:]])
    return ids, labels


@functools.cache
def count_system_tokens(tokenizer: Any) -> int:
    """Count the tokens of the system sentence.

    Args:
        tokenizer: The scene tokenizer.

    Returns:
        How many tokens stand between `<s>` and `USER:`.
    """
    from ..training.scene_tokenizer import SYSTEM_SENTENCE

    return len(tokenizer(SYSTEM_SENTENCE, add_special_tokens=False).input_ids)


def pad_rows(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Pad rows on the right into a batch.

    Args:
        rows: Token ids and labels of each row.
        pad_token_id: Fills `input_ids`.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each (B, L).
    """
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids, labels = (list(part) for part in zip(*rows, strict=True))
    mask = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad(ids, padding_value=pad_token_id),
        "attention_mask": pad(mask),
        "labels": pad(labels, padding_value=IGNORED_LABEL),
    }
