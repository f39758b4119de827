"""Rows of the evidence: the same for all arms of a seed, and what the recipe's collator makes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperllava_hf.evidence.arm_training import build_collator, order_scenes
from hyperllava_hf.evidence.training_rows import (
    DENSE_SIDE,
    FIRST_SCENE,
    IGNORED_LABEL,
    TrainingSet,
    build_training_set,
    densify_features,
    load_training_set,
    save_training_set,
)
from hyperllava_hf.training.hyperllava_stages import build_image_collator
from tests.evidence.evidence_models import get_processor, get_tower

NUM_SCENES = 7


@pytest.fixture(scope="module")
def training_set() -> TrainingSet:
    return build_training_set(get_processor(), get_tower(), NUM_SCENES, num_turns=3)


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_rows_and_features_are_those_of_the_recipe(training_set: TrainingSet, stage: str) -> None:
    processor, tower = get_processor(), get_tower()
    seeds = [FIRST_SCENE + i for i in range(NUM_SCENES)]
    expected = build_image_collator(processor, stage, 3)(seeds)
    found = build_collator(training_set, stage, processor, False)(list(range(NUM_SCENES)))
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(found[name], expected[name].long()), name
    with torch.no_grad():
        states = tower(expected["pixel_values"], output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(found["pixel_values"], states[:, 1:], atol=1e-6)


def test_a_saved_training_set_comes_back_bit_for_bit(
    training_set: TrainingSet, tmp_path: Path
) -> None:
    save_training_set(training_set, tmp_path)
    loaded = load_training_set(tmp_path)
    assert np.array_equal(loaded.features, training_set.features)
    for stage, rows in training_set.rows.items():
        for i in range(NUM_SCENES):
            for found, expected in zip(loaded.rows[stage].get_row(i), rows.get_row(i), strict=True):
                assert torch.equal(found, expected)


def test_a_seed_orders_scenes_and_each_comes_once_before_any_comes_twice() -> None:
    lengths = np.random.default_rng(0).integers(40, 160, size=100).tolist()
    order = order_scenes(lengths, num_steps=15, batch_size=10, seed=3)
    assert order == order_scenes(lengths, num_steps=15, batch_size=10, seed=3)
    assert order != order_scenes(lengths, num_steps=15, batch_size=10, seed=4)
    assert len(order) == 150
    assert np.bincount(order, minlength=100).min() >= 1
    assert np.bincount(order).max() == 2


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(40, 160, size=800).tolist()
    order = np.array(order_scenes(lengths, num_steps=50, batch_size=16, seed=1)).reshape(50, 16)
    padded = sum(max(lengths[i] for i in batch) * 16 for batch in order)
    shuffled = np.random.default_rng(1).permutation(800).reshape(50, 16)
    assert padded < 0.85 * sum(max(lengths[i] for i in batch) * 16 for batch in shuffled)


def test_dense_rows_lose_the_system_sentence_and_gain_image_positions(
    training_set: TrainingSet,
) -> None:
    processor = get_processor()

    def collate(dense: bool) -> dict[str, Any]:
        return build_collator(training_set, "instruct", processor, dense)([2])

    plain, dense = collate(False), collate(True)
    text = processor.tokenizer.decode(dense["input_ids"][0])
    images = "<image>" * DENSE_SIDE**2
    assert text.replace(" ", "").startswith(f"<s>USER:{images}")
    kept = dense["input_ids"][0] != processor.image_token_id
    was = plain["input_ids"][0] != processor.image_token_id
    assert int(was.sum()) - int(kept.sum()) == 29
    answers = [batch["labels"][batch["labels"] != IGNORED_LABEL] for batch in (plain, dense)]
    assert torch.equal(*answers)
    assert dense["pixel_values"].shape == (1, DENSE_SIDE**2, 192)


def test_denser_features_keep_the_mean_of_the_grid() -> None:
    features = torch.arange(16.0).view(1, 16, 1)
    dense = densify_features(features).view(DENSE_SIDE, DENSE_SIDE)
    assert dense.mean().item() == pytest.approx(7.5)
    assert dense[1, 1].item() == pytest.approx(0.0, abs=1e-5)
    assert dense[-2, -2].item() == pytest.approx(15.0)
    assert torch.all(dense[:, 1:] - dense[:, :-1] > -1e-5)
