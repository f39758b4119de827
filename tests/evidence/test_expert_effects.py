"""Tampering with experts: it changes what it says and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyperllava_hf.conversion.experts_freeze import measure_mean_experts
from hyperllava_hf.evidence.arm_training import build_collator
from hyperllava_hf.evidence.expert_effects import (
    change_guidance,
    measure_mean_guidance,
    project_weights,
    swap_rows,
    switch_off,
)
from hyperllava_hf.evidence.settings import SMOKE
from hyperllava_hf.evidence.training_rows import build_training_set, pad_rows
from tests.evidence.evidence_models import (
    ARMS,
    build_model,
    fill_experts,
    get_processor,
    get_question_rows,
    get_tower,
)

NEAR = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def factory() -> Any:
    processor = get_processor()
    training_set = build_training_set(processor, get_tower(), 4, num_turns=2)
    return SimpleNamespace(
        training_set=training_set,
        processor=processor,
        settings=SMOKE,
        validation=get_question_rows(2),
    )


@pytest.fixture(params=["guided", "prompt_mean"])
def guided(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    model = build_model(ARMS[request.param], tmp_path).eval()
    fill_experts(model)
    return SimpleNamespace(model=model, arm=ARMS[request.param], folder=tmp_path)


def build_batches(factory: Any) -> Iterator[dict[str, torch.Tensor]]:
    yield build_collator(factory.training_set, "instruct", factory.processor, False)([0, 1, 2, 3])


@torch.no_grad()
def test_mean_guidance_gives_the_logits_of_the_frozen_experts(factory: Any, guided: Any) -> None:
    frozen = measure_mean_experts(guided.model, build_batches(factory))
    static = build_model(ARMS["static_equal_r"], guided.folder).eval()
    result = static.load_state_dict({**guided.model.state_dict(), **frozen}, strict=False)
    assert not result.missing_keys
    means = measure_mean_guidance(factory, guided.model, guided.arm)
    batch = next(build_batches(factory))
    changes = {m: (lambda g, mean=mean: mean.expand_as(g)) for m, mean in means.items()}
    trained = guided.model(**batch).logits
    with change_guidance(guided.model, changes):
        replaced = guided.model(**batch).logits
    assert torch.allclose(replaced, static(**batch).logits, **NEAR)
    assert not torch.allclose(replaced, trained, **NEAR)
    assert torch.equal(guided.model(**batch).logits, trained)


@torch.no_grad()
def test_switching_off_both_is_plain_llava(factory: Any, guided: Any) -> None:
    llava = build_model(ARMS["llava"], guided.folder).eval()
    batch = next(build_batches(factory))
    with switch_off(guided.model, ("visual", "language")):
        off = guided.model(**batch).logits
    assert torch.equal(off, llava(**batch).logits)
    with switch_off(guided.model, ("visual",)):
        assert not torch.equal(off, guided.model(**batch).logits)


@torch.no_grad()
def test_swapped_guidance_is_that_of_the_row_before(factory: Any, guided: Any) -> None:
    rows = get_question_rows(2)
    ids = [row for row in rows.rows if len(row[0]) == len(rows.rows[0][0])][:2]
    chosen = [next(i for i, row in enumerate(rows.rows) if row is one) for one in ids]
    batch = {**pad_rows(ids, 0), "pixel_values": rows.features[chosen]}
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "swapped": []}
    for name, change in (("plain", lambda g: g), ("swapped", swap_rows)):

        def record(guidance: torch.Tensor, name: str = name, change: Any = change) -> Any:
            seen[name].append(change(guidance))
            return seen[name][-1]

        with change_guidance(guided.model, {"visual": record}):
            guided.model(**batch)
    plain, swapped = seen["plain"][0], seen["swapped"][0]
    assert torch.equal(swapped[0], plain[1])
    assert torch.equal(swapped[1], plain[0])


def test_projections_say_what_share_of_the_variance_they_hold(factory: Any, guided: Any) -> None:
    weights = project_weights(factory, guided.model)
    num_questions = len(weights["labels"]["family"])
    for modality in ("visual", "language"):
        projection = weights[modality]
        assert len(projection["points"]) == num_questions
        points = torch.tensor(projection["points"])
        assert torch.allclose(points.mean(0), torch.zeros(2), atol=1e-2)
        first, second = projection["variance"]
        assert 0 < second <= first <= 1
        assert all(0 <= share <= 1 for share in projection["between_groups"].values())
        assert projection["relative_spread"] > 0
