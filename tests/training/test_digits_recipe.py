"""The recipe end to end, two steps a stage: what moves, stays, is skipped and is left."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperllava_hf.training import digits_checkpoint
from hyperllava_hf.training.digits_recipe import STAGE_NAMES, DigitsRecipe, build_stage_runs
from hyperllava_hf.training.stage_folders import read_record, run_once
from hyperllava_hf.training.stages import TRAINED_GROUPS, get_group


def build_short_recipe() -> DigitsRecipe:
    recipe = DigitsRecipe(num_text_turns=2, num_image_turns=2)
    short = {
        name: replace(getattr(recipe, name), num_steps=2, batch_size=2) for name in STAGE_NAMES
    }
    return replace(recipe, **short)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for stage, run in build_stage_runs(build_short_recipe(), folder).items():
        assert run_once(folder / stage, run)
    return folder


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_stages_learn_in_the_order_of_the_paper() -> None:
    assert STAGE_NAMES[:4] == ("tower", "decoder", "align", "instruct")
    assert all(name.startswith("instruct_") for name in STAGE_NAMES[4:])
    recipe = DigitsRecipe()
    for stage in STAGE_NAMES[2:]:
        settings = getattr(recipe, stage)
        assert (settings.weight_decay, settings.adam_beta2) == (0.0, 0.999)
    assert recipe.align.learning_rate == 1e-3
    seeds = [getattr(recipe, stage).seed for stage in STAGE_NAMES]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(STAGE_NAMES[2:])))
def test_instruct_moves_its_groups_and_no_other(work: Path, first: str, second: str) -> None:
    before, after = load_weights(work / first), load_weights(work / second)
    assert before.keys() == after.keys()
    moved = {get_group(n) for n in before if not torch.equal(before[n], after[n])}
    stayed = {get_group(n) for n in before if torch.equal(before[n], after[n])}
    assert moved == TRAINED_GROUPS["instruct"]
    assert "vision_tower" in stayed - moved


def test_align_leaves_tower_and_decoder_as_stage_0_made_them(work: Path) -> None:
    weights = load_weights(work / "align")
    decoder = load_weights(work / "decoder")
    tower = load_weights(work / "tower")
    name = "layers.3.mlp.up_proj.weight"
    assert torch.equal(weights[f"model.language_model.{name}"], decoder[f"model.{name}"])
    assert torch.equal(weights["lm_head.weight"], decoder["lm_head.weight"])
    name = "embeddings.patch_embedding.weight"
    (key,) = (key for key in weights if key.endswith(name))
    (source,) = (key for key in tower if key.endswith(name))
    assert torch.equal(weights[key], tower[source])
    experts = [key for key in weights if "visual_expert." in key]
    assert any(weights[key].abs().max() > 0 for key in experts if key.endswith("bias_up"))


def test_finished_stages_are_skipped(work: Path) -> None:
    for stage, run in build_stage_runs(build_short_recipe(), work).items():
        assert not run_once(work / stage, run)


def test_every_stage_records_its_settings_and_its_log(work: Path) -> None:
    for stage in STAGE_NAMES:
        record = read_record(work / stage)
        assert record["settings"]["num_steps"] == 2
        assert [row["step"] for row in record["log"]] == [1, 2]
        assert all(row["loss"] > 0 for row in record["log"])
    assert set(read_record(work / "tower")["validation"]) == {"digit", "ink", "digit_by_patch"}


def test_finished_checkpoint_holds_everything(work: Path, tmp_path: Path) -> None:
    card = tmp_path / "CARD.md"
    card.write_text("card\n")
    arguments = ["--work", str(work), "--output", str(tmp_path / "model"), "--card", str(card)]
    digits_checkpoint.main([*arguments, "--no-metrics"])
    names = {path.name for path in (tmp_path / "model").iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
    expected |= {"README.md", "training_log.csv", "modeling_hyperllava.py"}
    assert expected <= names
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 25e6
    with (tmp_path / "model" / "training_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [s for s in STAGE_NAMES for _ in range(2)]
