"""Weights that travel with a cache: whatever its rows undergo, they undergo."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hyperllava_hf.modeling.carrier_hyperllava import get_carried
from tests.modeling.scope_modes import NEAR
from tests.modeling.tiny_models import batch, differ, logits, row, tiny_model

ROWS = [row(4, "image", 2, seed=1), row(3, seed=2), row(9, seed=3)]
STEP = torch.tensor([[7, 8]])


@pytest.fixture(scope="module")
def model():
    return tiny_model(language_guidance_scope="prompt")


def empty_cache(model, kind):
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    return StaticCache(config=model.config.get_text_config(), max_cache_len=32)


def fill(model, cache, inputs):
    logits(model, **inputs, guidance_mask=inputs["attention_mask"], past_key_values=cache)
    return cache


def step(model, cache, inputs, rows):
    """One further call over the cached rows numbered `rows`."""
    mask = inputs["attention_mask"][rows]
    ids = STEP.expand(len(rows), -1)
    mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return logits(model, input_ids=ids, attention_mask=mask, past_key_values=cache)


@pytest.fixture(scope="module")
def expected(model):
    inputs = batch(ROWS)
    return step(model, fill(model, DynamicCache(), inputs), inputs, [0, 1, 2])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_carries_the_weights_of_every_expert_block(model, kind):
    cache = fill(model, empty_cache(model, kind), batch(ROWS))
    carried = get_carried(cache)
    assert sorted(carried) == [2, 3]
    for down, up in carried.values():
        assert down.shape == (3, 6, 16)
        assert up.shape == (3, 3, 16)


CHANGES = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "batch_repeat_interleave": (
        lambda cache: cache.batch_repeat_interleave(2),
        [0, 0, 1, 1, 2, 2],
    ),
    "batch_select_indices": (
        lambda cache: cache.batch_select_indices(torch.tensor([2, 1])),
        [2, 1],
    ),
    "repeat, then reorder": (
        lambda cache: (
            cache.batch_repeat_interleave(2),
            cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0])),
        ),
        [2, 2, 1, 1, 0, 0],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [False, True])
def test_rows_and_their_weights_move_together(model, expected, change, copied):
    inputs = batch(ROWS)
    cache = fill(model, DynamicCache(), inputs)
    if copied:
        original, cache = cache, copy.deepcopy(cache)
    edit, rows = CHANGES[change]
    edit(cache)
    assert differ(step(model, cache, inputs, rows), expected[rows]) < NEAR
    if copied:  # the original is as it was
        assert differ(step(model, original, inputs, [0, 1, 2]), expected) < NEAR


def test_a_static_cache_reorders_too(model, expected):
    inputs = batch(ROWS)
    cache = fill(model, empty_cache(model, "static"), inputs)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert differ(step(model, cache, inputs, [2, 0, 0]), expected[[2, 0, 0]]) < NEAR


def test_a_cropped_cache_keeps_its_guidance(model, expected):
    inputs = batch(ROWS)
    cache = fill(model, DynamicCache(), inputs)
    step(model, cache, inputs, [0, 1, 2])
    cache.crop(-STEP.shape[1])
    assert differ(step(model, cache, inputs, [0, 1, 2]), expected) < NEAR


def test_a_cache_cropped_to_nothing_starts_anew(model):
    inputs = batch([ROWS[1]])
    cache = fill(model, DynamicCache(), batch([ROWS[2]]))
    cache.crop(-cache.get_seq_length())
    assert get_carried(cache) is None
    found = logits(model, **inputs, guidance_mask=inputs["attention_mask"], past_key_values=cache)
    assert differ(found, logits(model, **inputs, guidance_mask=inputs["attention_mask"])) < NEAR


# 4.57 does not empty a dynamic cache that it resets, so there it stays filled, with zeros.
def test_a_reset_cache_starts_anew(model):
    cache = fill(model, empty_cache(model, "static"), batch([ROWS[2]]))
    cache.reset()
    assert get_carried(cache) is None
    inputs = batch([ROWS[1]])
    found = logits(model, **inputs, guidance_mask=inputs["attention_mask"], past_key_values=cache)
    assert differ(found, logits(model, **inputs, guidance_mask=inputs["attention_mask"])) < NEAR


def test_a_reset_cache_takes_a_single_token_as_a_new_prompt(model):
    """One position after carried weights is a decoding step; after a reset it is a prompt."""
    cache = fill(model, empty_cache(model, "static"), batch([ROWS[2]]))
    cache.reset()
    inputs = row()
    mask = torch.ones_like(inputs["input_ids"])
    found = logits(model, **inputs, guidance_mask=mask, past_key_values=cache)
    assert differ(found, logits(model, **inputs, guidance_mask=mask)) < NEAR


def test_token_scope_leaves_a_cache_as_it_is():
    cache = DynamicCache()
    logits(tiny_model(), **batch(ROWS), past_key_values=cache)
    assert get_carried(cache) is None
    assert set(vars(cache)) == set(vars(DynamicCache()))


def test_a_cache_of_one_block_fewer_or_another_model_is_refused_or_right(model):
    """A cache filled by token scope holds keys that prompt scope cannot continue."""
    cache = DynamicCache()
    logits(tiny_model(), **row(5), past_key_values=cache)
    with pytest.raises(ValueError, match="carries no language expert weights"):
        logits(model, input_ids=STEP, past_key_values=cache)


def test_carried_weights_have_gradients_back_to_the_prompt():
    """Training through a cache, as with a prefix that is read once and continued."""
    model = tiny_model(language_guidance_scope="prompt").train()
    cache = DynamicCache()
    inputs = row(6)
    model(**inputs, guidance_mask=torch.ones_like(inputs["input_ids"]), past_key_values=cache)
    model(input_ids=STEP, past_key_values=cache).logits.sum().backward()
    expert = model.model.language_model.layers[3].language_expert
    assert expert.encoder_weight.grad.abs().sum() > 0
