"""Recipes: bundled ones are what the paper and LLaVA-1.5 say; files, bases, overrides, mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hyperllava_hf.training.recipes import (
    build_settings,
    get_recipe_folder,
    list_recipes,
    parse_override,
)

NAMES = sorted(path.stem for path in get_recipe_folder().glob("*.toml"))
# Paper, Sec. 4.1, and LLaVA-1.5's scripts: rows a step, learning rate, rows a GPU of 8.
PAPER = {"align": (256, 1e-3, 32), "instruct": (128, 2e-5, 16)}
DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_is_valid_and_says_what_it_is_for(name):
    settings = build_settings(name)
    assert list_recipes()[name]
    assert name.startswith(settings.stage)
    common = (settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon)
    assert common == (0.9, 0.999, 1e-8)
    assert (settings.weight_decay, settings.warmup_ratio, settings.schedule) == (0, 0.03, "cosine")
    assert settings.num_epochs == 1


@pytest.mark.parametrize("name", [name for name in NAMES if "digits" not in name])
def test_recipe_keeps_the_papers_rows_a_step(name):
    settings = build_settings(name)
    total, rate, at_once = PAPER[settings.stage]
    assert settings.global_batch_size == total
    assert settings.max_length == 2048
    is_whole = settings.language_model == "full" or settings.stage == "align"
    assert settings.learning_rate == (rate if is_whole else 2e-4)
    assert settings.device_batch_size == at_once or "24gb" in name
    assert settings.group_by_modality_length == (settings.stage == "instruct")
    assert settings.pad_images == (settings.stage == "instruct")
    assert ("13b" in name) == ("13b" in settings.model)


def test_a_recipe_states_only_its_differences(tmp_path):
    base = tmp_path / "base.toml"
    base.write_text(
        'base = "instruct-7b"\nseed = 1\n[experts]\nexpert_input_dim = 8\nexpert_hidden_dim = 4\n'
    )
    (tmp_path / "mine.toml").write_text('base = "base.toml"\n[experts]\nexpert_hidden_dim = 2\n')
    settings = build_settings(str(tmp_path / "mine.toml"))
    assert settings.experts == {"expert_input_dim": 8, "expert_hidden_dim": 2}
    assert (settings.seed, settings.global_batch_size) == (1, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1.0", r"'learning_rat', did you mean 'learning_rate'\?"),
        ("learning_rate = ", "is no TOML"),
        ('base = "nothing"', "found no recipe 'nothing'"),
        ('base = "mine.toml"', r"is based on itself \(mine.toml -> mine.toml\)"),
        ("seed = 1", "names no stage"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        build_settings(str(path))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'instruct-7b-24gb'"):
        build_settings("instruct-7b-24g")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-4", {"learning_rate": 1e-4}),
        ("model=./my-llava", {"model": "./my-llava"}),
        ("max_steps=none", {"max_steps": None}),
        ("tf32=false", {"tf32": False}),
        ("report_to=tensorboard,wandb", {"report_to": ["tensorboard", "wandb"]}),
        ("report_to=none", {"report_to": []}),
        ("experts.language_guidance_layer=none", {"experts": {"language_guidance_layer": None}}),
        ("experts.language_expert_layers=3,5", {"experts": {"language_expert_layers": [3, 5]}}),
        ("experts.language_expert_layers=none", {"experts": {"language_expert_layers": "none"}}),
        ("experts.visual_expert=none", {"experts": {"visual_expert": "none"}}),
        ("experts.language_expert_layers=[3, 5]", {"experts": {"language_expert_layers": [3, 5]}}),
    ],
)
def test_overrides_are_typed(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("seed", "expected name=value"), ("=1", "expected name=value"), ("sed=1", "mean 'seed'")],
)
def test_wrong_overrides_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        build_settings("instruct-7b", [text])


def test_overrides_are_checked_with_the_recipe():
    with pytest.raises(ValueError, match="seed: found -1, expected at least 0"):
        build_settings("instruct-7b", ["seed=-1"])
    settings = build_settings("instruct-7b", ["learning_rate=1", "device_batch_size=4"])
    assert settings.learning_rate == 1.0
    assert isinstance(settings.learning_rate, float)


def test_a_recipe_of_the_other_stage_is_refused():
    with pytest.raises(ValueError, match="align-7b is a recipe of 'align', expected one of 'inst"):
        build_settings("align-7b", stage_wanted="instruct")


def test_recipes_are_read_without_torch():
    code = (
        "import sys\nfrom hyperllava_hf.training.recipes import build_settings, list_recipes\n"
        "[build_settings(name) for name in list_recipes()]\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_document_lists_every_recipe_with_its_numbers():
    """docs/training.md's table is the recipes' own."""
    row = r"^\| `((?:align|instruct)-[a-z0-9-]+)` \| (.*) \|$"
    rows = re.findall(row, DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    expected = {}
    for name, about in list_recipes().items():
        settings = build_settings(name)
        accumulated = settings.global_batch_size // settings.device_batch_size
        expected[name] = (
            f"{about} | {settings.learning_rate:g} | {settings.global_batch_size} = "
            f"{settings.device_batch_size} x {accumulated}"
        )
    assert dict(rows) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base=instruct-7b", "base belongs into a recipe's file"),
        ("about=x", "about belongs into a recipe's file"),
        ("seed=1\nlearning_rate=7", "found several lines, expected one setting"),
        ("weight_decay=inf", "weight_decay: found inf, expected a finite number"),
    ],
)
def test_overrides_that_would_be_lost_or_fail_late_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        build_settings("instruct-digits", [text])
