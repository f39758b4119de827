"""Answers of a model to many questions, in batches, by greedy `generate`.

Questions of one family have answers of similar length, so batches hold one family and little of a
batch waits for its longest answer. Prompts are padded on the left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

MAX_NEW_TOKENS = 64


def build_prompt(question: str, with_image: bool) -> list[dict[str, Any]]:
    """Build a conversation of one question.

    Args:
        question: The question.
        with_image: Whether an image precedes it.

    Returns:
        Messages for `processor.apply_chat_template`.
    """
    content: list[dict[str, str]] = [{"type": "text", "text": question}]
    if with_image:
        content.insert(0, {"type": "image"})
    return [{"role": "user", "content": content}]


def _list_batches(order: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), batch_size):
        yield list(order[start : start + batch_size])


@torch.no_grad()
def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[str],
    images: Sequence[Image.Image | None],
    groups: Sequence[str] | None = None,
    batch_size: int = 64,
    label: str = "answering",
) -> list[str]:
    """Answer questions about images.

    Args:
        model: A model with `generate`.
        processor: Its processor.
        questions: The questions.
        images: The image of each question, or None for a question without one.
        groups: A name for each question; questions of one name share batches.
        batch_size: Questions a batch.
        label: What the progress bar says.

    Returns:
        The answers, in the order of the questions.
    """
    names = groups if groups is not None else [""] * len(questions)
    order = sorted(
        range(len(questions)), key=lambda i: (names[i], images[i] is None, len(questions[i]))
    )
    answers = [""] * len(questions)
    progress = tqdm(total=len(order), desc=label, unit="question")
    for batch in _list_batches(order, batch_size):
        prompts = [build_prompt(questions[i], images[i] is not None) for i in batch]
        pictures = [[images[i]] if images[i] is not None else [] for i in batch]
        inputs = processor.apply_chat_template(
            prompts,
            images=pictures if any(pictures) else None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        ).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(new_tokens, skip_special_tokens=True)
        for i, text in zip(batch, texts, strict=True):
            answers[i] = text.strip()
        progress.update(len(batch))
    progress.close()
    return answers
