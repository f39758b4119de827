"""Scores without `generate`: the answer is given to the model, token by token.

Greedy decoding writes an answer and then ends exactly if each of the answer's tokens, `</s>`
included, is the most likely one after those before it. One forward tells for many questions at
once (a test compares with `generate`). It is a little stricter than the card's score, which
forgives case and a final period. The loss of the answers is the finer measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..evaluation.digit_questions import FAMILIES
from ..evaluation.digit_scenes import draw_scene
from ..evaluation.question_file import AskedQuestion
from .cached_tower import read_features
from .training_rows import (
    IGNORED_LABEL,
    count_system_tokens,
    densify_features,
    densify_row,
    pad_rows,
    split_batch,
)

QUESTIONS_A_BATCH = 100


@dataclass(frozen=True)
class QuestionRows:
    """Questions as a model reads them.

    Attributes:
        families: The family of each question.
        features: The tower's features, float32 (Q, 16, D_v).
        rows: Token ids and labels of each question with its answer.
    """

    families: list[str]
    features: torch.Tensor
    rows: list[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def build_question_rows(
    questions: Sequence[AskedQuestion], processor: Any, tower: Any
) -> QuestionRows:
    """Read the scenes of questions, and word the questions with their answers.

    Args:
        questions: The questions.
        processor: The processor.
        tower: The frozen vision tower.

    Returns:
        The rows, in the order of the questions.
    """
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    features = []
    for start in range(0, len(questions), QUESTIONS_A_BATCH):
        asked = questions[start : start + QUESTIONS_A_BATCH]
        batch = processor.apply_chat_template(
            [build_conversation(question) for question in asked],
            images=[[draw_scene(question.scene)] for question in asked],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_labels=True,
            padding=True,
        )
        rows += split_batch(batch)
        features.append(read_features(tower, batch["pixel_values"]))
    return QuestionRows([question.family for question in questions], torch.cat(features), rows)


def build_conversation(question: AskedQuestion) -> list[dict[str, Any]]:
    """Put a question with its image and its answer into the chat form.

    Args:
        question: The question.

    Returns:
        Two messages.
    """
    asked = [{"type": "image"}, {"type": "text", "text": question.question}]
    answer = [{"type": "text", "text": question.answer}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


@torch.no_grad()
def mark_answers(
    model: Any,
    questions: QuestionRows,
    processor: Any,
    dense_images: bool = False,
    forward: Callable[..., Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tell for each question whether greedy decoding would give the answer, and the answer's loss.

    Args:
        model: A model with a cached tower.
        questions: The questions.
        processor: The processor.
        dense_images: Whether rows have 7B's ratio of image to text positions.
        forward: Runs the model; `model` itself when None.

    Returns:
        Booleans of shape (Q,), and losses in nats a token, averaged within each answer (Q,).
    """
    rows, system = questions.rows, count_system_tokens(processor.tokenizer)
    if dense_images:
        rows = [densify_row(*row, processor.image_token_id, system) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    correct, losses = np.zeros(len(rows), dtype=bool), np.zeros(len(rows))
    model.eval()
    for start in range(0, len(order), QUESTIONS_A_BATCH):
        chosen = order[start : start + QUESTIONS_A_BATCH]
        batch = pad_rows([rows[i] for i in chosen], processor.tokenizer.pad_token_id)
        features = questions.features[chosen]
        batch["pixel_values"] = densify_features(features) if dense_images else features
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = (forward or model)(**batch).logits[:, :-1]  # (B, L - 1, V)
        target = batch["labels"][:, 1:]
        hits = (logits.argmax(-1) == target) | (target == IGNORED_LABEL)
        correct[chosen] = hits.all(-1).cpu().numpy()
        token_losses = F.cross_entropy(
            logits.mT, target, ignore_index=IGNORED_LABEL, reduction="none"
        )  # (B, L - 1)
        num_tokens = (target != IGNORED_LABEL).sum(-1)
        losses[chosen] = (token_losses.sum(-1) / num_tokens).cpu().numpy()
    return correct, losses


def score_answers(
    model: Any, questions: QuestionRows, processor: Any, dense_images: bool = False
) -> dict[str, float]:
    """Score a model on questions.

    Args:
        model: A model with a cached tower.
        questions: The questions.
        processor: The processor.
        dense_images: Whether rows have 7B's ratio of image to text positions.

    Returns:
        Accuracy by family, their mean as "overall", and as "loss" the families' mean loss.
    """
    correct, losses = mark_answers(model, questions, processor, dense_images)
    loss = average_by_family(losses, questions.families)["overall"]
    return {**average_by_family(correct, questions.families), "loss": loss}


def average_by_family(values: np.ndarray, families: Sequence[str]) -> dict[str, float]:
    """Average over families.

    Args:
        values: One a question.
        families: The family of each.

    Returns:
        The mean of each family, and their mean as "overall".
    """
    names = np.asarray(families)
    means = {family: float(values[names == family].mean()) for family in FAMILIES}
    return {"overall": float(np.mean(list(means.values()))), **means}
