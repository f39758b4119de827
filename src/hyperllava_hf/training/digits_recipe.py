"""The recipe of the bundled checkpoint: its stages, each from the folders of those before it.

    tower      stage 0: a CLIP tower learns to read scenes (supervised)
    decoder    stage 0: a Llama learns the language of scenes (text alone)
    align      stage 1: projector and visual expert, on images and their descriptions
    instruct   stage 2: all but the tower, on conversations about images
    instruct_2 stage 2 goes on, slower, with questions that tie digits to places and inks
    instruct_3 stage 2 goes on, on crowded scenes
    instruct_4 stage 2 goes on, on the forms that are answered worst on validation
    instruct_5 stage 2 goes on, on places
    instruct_6 stage 2 goes on, on places
    instruct_7 stage 2 ends, on counts

The first two do not need each other and can run at the same time. Each of the rest starts from the
one before it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, set_seed

from ..modeling import HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaProcessor
from .decoder_stage import build_decoder, build_text_collator
from .digits_model import (
    assemble_digits_model,
    build_digits_processor,
    build_text_config,
    build_vision_config,
)
from .hyperllava_stages import run_stage
from .scene_conversations import BINDING, BROAD, COUNTS, CROWDED, FINISH, PLACES_MIX, Mix
from .scene_reader import SceneReader
from .tower_initialization import build_tower
from .tower_stage import WeightAverage, collate_scenes, measure_reading
from .trainer_runs import RunSettings, run_training

STAGE_NAMES = (
    "tower",
    "decoder",
    "align",
    "instruct",
    "instruct_2",
    "instruct_3",
    "instruct_4",
    "instruct_5",
    "instruct_6",
    "instruct_7",
)
# A stage's rows must not be another's: each counts from its own seed.
SEEDS = {
    "decoder": 0,
    "tower": 1,
    "align": 2,
    "instruct": 3,
    "instruct_2": 22,
    "instruct_3": 23,
    "instruct_4": 24,
    "instruct_5": 25,
    "instruct_6": 26,
    "instruct_7": 27,
}


@dataclass(frozen=True)
class DigitsRecipe:
    """The numbers of the recipe.

    Learning rates are those of a model a thousand times smaller than the paper's: stage 1 keeps
    the paper's 1e-3, stage 2 has 1e-3 and then less where a 7B model has 2e-5.

    Attributes:
        tower: Stage 0, the tower.
        decoder: Stage 0, the decoder.
        align: Stage 1.
        instruct: Stage 2, first round.
        instruct_2: Stage 2, second round.
        instruct_3: Stage 2, third round.
        instruct_4: Stage 2, fourth round.
        instruct_5: Stage 2, fifth round.
        instruct_6: Stage 2, sixth round.
        instruct_7: Stage 2, seventh round.
        num_text_turns: Questions a conversation in stage 0.
        num_image_turns: Questions a conversation in stage 2.
    """

    tower: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=3000,
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.05,
            adam_beta2=0.98,
            seed=SEEDS["tower"],
        )
    )
    decoder: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=3000, batch_size=8, learning_rate=1.5e-3, seed=SEEDS["decoder"]
        )
    )
    align: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=500, batch_size=32, learning_rate=1e-3, seed=SEEDS["align"]
        )
    )
    instruct: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=3000, batch_size=16, learning_rate=1e-3, seed=SEEDS["instruct"]
        )
    )
    instruct_2: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=3000, batch_size=8, learning_rate=4e-4, seed=SEEDS["instruct_2"]
        )
    )
    instruct_3: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=2400, batch_size=8, learning_rate=4e-4, seed=SEEDS["instruct_3"]
        )
    )
    instruct_4: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=1000, batch_size=8, learning_rate=3e-4, seed=SEEDS["instruct_4"]
        )
    )
    instruct_5: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=600, batch_size=8, learning_rate=5e-4, seed=SEEDS["instruct_5"]
        )
    )
    instruct_6: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=1500, batch_size=8, learning_rate=5e-4, seed=SEEDS["instruct_6"]
        )
    )
    instruct_7: RunSettings = field(
        default_factory=lambda: RunSettings(
            num_steps=1400, batch_size=8, learning_rate=4e-4, seed=SEEDS["instruct_7"]
        )
    )
    num_text_turns: int = 5
    num_image_turns: int = 6


# What each round of the paper's stages is about.
MIXES: dict[str, Mix] = {
    "align": BROAD,
    "instruct": BROAD,
    "instruct_2": BINDING,
    "instruct_3": CROWDED,
    "instruct_4": FINISH,
    "instruct_5": PLACES_MIX,
    "instruct_6": PLACES_MIX,
    "instruct_7": COUNTS,
}


def train_tower(recipe: DigitsRecipe, folder: Path) -> dict[str, Any]:
    """Train and save the tower.

    Args:
        recipe: The recipe.
        folder: Where the tower is written.

    Returns:
        The stage's record.
    """
    reader = SceneReader(build_tower(build_vision_config()))
    average = WeightAverage(reader)
    log = run_training(reader, collate_scenes, recipe.tower, folder, [average])
    averaged = cast(SceneReader, average.average)
    averaged.tower.save_pretrained(folder)
    return {"log": log, "validation": measure_reading(averaged, "validation")}


def train_decoder(recipe: DigitsRecipe, folder: Path) -> dict[str, Any]:
    """Train and save the decoder.

    Args:
        recipe: The recipe.
        folder: Where the decoder is written.

    Returns:
        The stage's record.
    """
    processor = build_digits_processor()
    decoder = build_decoder(build_text_config(processor.tokenizer))
    collate = build_text_collator(processor, recipe.num_text_turns)
    log = run_training(decoder, collate, recipe.decoder, folder)
    decoder.save_pretrained(folder)
    return {"log": log}


def train_hyperllava(recipe: DigitsRecipe, folders: Path, name: str) -> dict[str, Any]:
    """Train and save the HyperLLaVA of stage 1 or of a round of stage 2.

    Args:
        recipe: The recipe.
        folders: Where the stages' folders lie.
        name: One of `MIXES`.

    Returns:
        The stage's record.
    """
    if name == "align":
        processor = build_digits_processor()
        tower = CLIPVisionModel.from_pretrained(folders / "tower")
        decoder = LlamaForCausalLM.from_pretrained(folders / "decoder")
        model = assemble_digits_model(tower, decoder, processor.image_token_id)
    else:
        previous = folders / STAGE_NAMES[STAGE_NAMES.index(name) - 1]
        processor = HyperLlavaProcessor.from_pretrained(previous)
        model = HyperLlavaForConditionalGeneration.from_pretrained(previous)
    stage = name.split("_")[0]
    folder = folders / name
    settings = getattr(recipe, name)
    log = run_stage(model, processor, stage, settings, folder, recipe.num_image_turns, MIXES[name])
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return {"log": log}


def build_stage_runs(
    recipe: DigitsRecipe, folders: Path
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Give what each stage runs, in order.

    Args:
        recipe: The recipe.
        folders: Where the stages' folders lie.

    Returns:
        For each of `STAGE_NAMES` a function of the stage's folder, which returns its record.
    """

    def time_run(stage: str, run: Callable[[Path], dict[str, Any]]) -> Any:
        def run_timed(folder: Path) -> dict[str, Any]:
            set_seed(getattr(recipe, stage).seed)
            start = time.perf_counter()
            record = run(folder)
            seconds = round(time.perf_counter() - start)
            threads = torch.get_num_threads()
            settings = asdict(getattr(recipe, stage))
            return {"settings": settings, "seconds": seconds, "threads": threads, **record}

        return run_timed

    runs: dict[str, Callable[[Path], dict[str, Any]]] = {
        "tower": lambda folder: train_tower(recipe, folder),
        "decoder": lambda folder: train_decoder(recipe, folder),
    }
    for name in MIXES:
        runs[name] = functools.partial(_train_into, recipe, folders, name)
    return {name: time_run(name, run) for name, run in runs.items()}


def _train_into(recipe: DigitsRecipe, folders: Path, name: str, _: Path) -> dict[str, Any]:
    return train_hyperllava(recipe, folders, name)
