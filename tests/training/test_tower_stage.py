"""The tower's first values, its reader, and the weights' average."""

import math

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig

from hyperllava_hf.training.scene_reader import SceneReader, list_patches_by_cell
from hyperllava_hf.training.tower_initialization import build_position_table, build_tower
from hyperllava_hf.training.tower_stage import WeightAverage, collate_scenes


@pytest.fixture
def reader() -> SceneReader:
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        patch_size=28,
    )
    torch.manual_seed(0)
    return SceneReader(build_tower(config))


def test_patches_of_a_cell_are_a_quarter_of_the_image() -> None:
    cells = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert list_patches_by_cell(4).tolist() == cells


def test_positions_are_as_large_as_contents_and_all_different() -> None:
    table = build_position_table(4, 16)
    assert table.shape == (16, 16)
    assert torch.allclose(table.pow(2).mean(1), torch.ones(16), atol=1e-5)
    distances = torch.cdist(table, table) + 9 * torch.eye(16)
    assert distances.min() > 0.5
    # Row 1, column 2, lowest frequency: half a wave over the four rows.
    expected = math.sqrt(2) * torch.tensor([math.sin(math.pi / 4), math.sin(math.pi / 2)])
    assert torch.allclose(table[1 * 4 + 2, [0, 8]], expected, atol=1e-6)


def test_block_that_is_not_read_is_the_identity(reader: SceneReader) -> None:
    pixels = torch.randn(2, 3, 112, 112)
    states = reader.tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], states[-2])
    frozen = [name for name, p in reader.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(".layers.1." in name for name in frozen)


def test_loss_falls_on_one_batch(reader: SceneReader) -> None:
    batch = collate_scenes(list(range(8)))
    assert batch["pixel_values"].shape == (8, 3, 112, 112)
    trained = [p for p in reader.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = reader(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_same_seeds_give_the_same_batch() -> None:
    first, again = collate_scenes([3, 4]), collate_scenes([3, 4])
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_average_follows_the_parameters() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(start + 1.0)

    class State:
        global_step = 20

    average.on_step_end(None, State(), None)
    assert average.average.weight.item() == pytest.approx(start + 0.5)
