"""Exact answers by one forward are those of greedy decoding; cached features are the tower's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hyperllava_hf.checkpoints import get_bundled_checkpoint
from hyperllava_hf.evaluation.digit_scenes import draw_scene
from hyperllava_hf.evaluation.question_file import build_questions
from hyperllava_hf.evidence.cached_tower import CachedTower, read_features
from hyperllava_hf.evidence.exact_answers import (
    average_by_family,
    build_conversation,
    mark_answers,
    score_answers,
)
from hyperllava_hf.evidence.training_rows import IGNORED_LABEL
from hyperllava_hf.modeling import HyperLlavaForConditionalGeneration
from tests.evidence.evidence_models import (
    ARMS,
    build_model,
    fill_experts,
    get_processor,
    get_question_rows,
    get_tower,
)

NUM_QUESTIONS = 4


def load_bundled_with_cached_tower() -> HyperLlavaForConditionalGeneration:
    model = HyperLlavaForConditionalGeneration.from_pretrained(get_bundled_checkpoint()).eval()
    model.model.vision_tower = CachedTower()
    return model


def test_marked_answers_are_those_that_generate_writes_token_by_token() -> None:
    model, rows = load_bundled_with_cached_tower(), get_question_rows(NUM_QUESTIONS)
    # Enough noise that some answers are wrong.
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight += 0.25 * torch.randn_like(model.lm_head.weight)
    marked, losses = mark_answers(model, rows, get_processor())
    generated, expected_losses = [], []
    for (ids, labels), features in zip(rows.rows, rows.features, strict=True):
        answer = ids[labels != IGNORED_LABEL]
        prompt = ids[: len(ids) - len(answer)][None]
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=features[None],
            do_sample=False,
            max_new_tokens=len(answer),
        )
        generated.append(torch.equal(output[0, prompt.shape[1] :], answer))
        whole = model(input_ids=ids[None], pixel_values=features[None], labels=labels[None])
        expected_losses.append(whole.loss.item())
    assert marked.tolist() == generated
    assert losses == pytest.approx(np.array(expected_losses), rel=1e-4)
    assert 0 < sum(generated) < len(generated)


def test_cached_features_give_the_logits_of_pixels() -> None:
    whole = HyperLlavaForConditionalGeneration.from_pretrained(get_bundled_checkpoint()).eval()
    processor = get_processor()
    questions = build_questions("train", 1)
    batch = processor.apply_chat_template(
        [build_conversation(question) for question in questions],
        images=[[draw_scene(question.scene)] for question in questions],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_labels=True,
        padding=True,
    )
    with torch.no_grad():
        expected = whole(**batch).logits
        features = read_features(get_tower(), batch["pixel_values"])
        found = load_bundled_with_cached_tower()(**{**batch, "pixel_values": features}).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["guided", "prompt_mean", "static_equal_r", "dense_prompt"])
def test_an_answer_is_marked_alike_in_any_batch(name: str, tmp_path: Path) -> None:
    model = build_model(ARMS[name], tmp_path)
    fill_experts(model)
    rows, dense = get_question_rows(NUM_QUESTIONS), ARMS[name].dense_images
    together = {}

    def keep(**batch: torch.Tensor) -> object:
        output = model(**batch)
        for i, mask in enumerate(batch["attention_mask"].bool()):
            together[tuple(batch["input_ids"][i][mask].tolist())] = output.logits[i][mask]
        return output

    mark_answers(model, rows, get_processor(), dense, keep)
    many = dict(together)
    single = type(rows)(rows.families[5:6], rows.features[5:6], rows.rows[5:6])
    together.clear()
    mark_answers(model, single, get_processor(), dense, keep)
    ((key, logits),) = together.items()
    assert torch.allclose(logits, many[key], atol=1e-4)


def test_overall_is_the_mean_over_families() -> None:
    families = ["reading", "reading", "colour", "counting", "presence", "description"]
    averages = average_by_family(np.array([True, False, True, True, False, False]), families)
    assert averages["reading"] == 0.5
    assert averages["overall"] == pytest.approx((0.5 + 1 + 1 + 0 + 0) / 5)


def test_scores_average_what_is_marked() -> None:
    model, rows = load_bundled_with_cached_tower(), get_question_rows(NUM_QUESTIONS)
    correct, losses = mark_answers(model, rows, get_processor())
    scores = score_answers(model, rows, get_processor())
    assert scores["overall"] == average_by_family(correct, rows.families)["overall"]
    # As many questions of each family, so the mean over families is that over questions.
    assert scores["loss"] == pytest.approx(losses.mean())
