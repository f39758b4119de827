"""What the tests of the evidence share: a decoder of random weights, and arms on it."""

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hyperllava_hf.evaluation.question_file import build_questions
from hyperllava_hf.evidence.arm_models import build_arm_model, load_processor, load_tower
from hyperllava_hf.evidence.arms import Arm, list_arms
from hyperllava_hf.evidence.exact_answers import QuestionRows, build_question_rows
from hyperllava_hf.evidence.stage_zero import build_decoder_config
from hyperllava_hf.training.decoder_stage import build_decoder

ARMS = {arm.name: arm for arm in list_arms()}


@functools.cache
def get_processor() -> Any:
    return load_processor()


@functools.cache
def get_tower() -> Any:
    return load_tower()


def save_decoder(folder: Path, width: int) -> Path:
    set_seed(0)
    build_decoder(build_decoder_config(get_processor(), width)).save_pretrained(folder)
    return folder


def build_model(arm: Arm, folder: Path, seed: int = 1) -> Any:
    decoder = folder / f"decoder-{arm.width}"
    if not decoder.exists():
        save_decoder(decoder, arm.width)
    return build_arm_model(arm, decoder, get_processor().image_token_id, seed)


@functools.cache
def get_question_rows(num_questions: int) -> QuestionRows:
    questions = build_questions("train", num_questions)
    return build_question_rows(questions, get_processor(), get_tower())


def fill_experts(model: Any) -> None:
    """Make fresh experts do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_expert" in name and "up" in name:
                parameter.normal_(std=0.2)
