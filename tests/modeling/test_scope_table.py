"""The scope table: `generate` under every cache, in batches, with beams and assistance."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.modeling.scope_modes import (
    MODES,
    NEAR,
    NEW_TOKENS,
    PAIR,
    PROMPT,
    QUESTION,
    assert_same_generation,
    extend,
    generate,
    marked,
    plain_decode,
)
from tests.modeling.tiny_models import (
    ROWS,
    as_llava,
    batch,
    differ,
    logits,
    prompt_mask,
    row,
    tiny_model,
)

# generate, every cache

CACHES = {
    "dynamic": {},
    "dynamic, given": {"past_key_values": lambda model: DynamicCache(config=model.config)},
    "static": {"cache_implementation": "static"},
    "static, given": {
        "past_key_values": lambda model: StaticCache(
            config=model.config.get_text_config(), max_cache_len=64
        )
    },
    "none": {"use_cache": False},
}
# An offloaded cache prefetches on a CUDA stream, and a quantised one needs optimum-quanto or hqq:
# neither runs here. Both keep their weights where every cache does: on the cache object.


@pytest.mark.parametrize("cache", CACHES)
def test_generate_is_the_plain_forward_under_every_cache(model, cache):
    options = {
        name: value(model) if callable(value) else value for name, value in CACHES[cache].items()
    }
    found = generate(model, QUESTION, **options)
    tokens, scores = plain_decode(model, QUESTION)
    assert torch.equal(found.sequences, tokens)
    assert differ(torch.stack(found.logits), scores) < NEAR


@pytest.mark.parametrize("cache", ["static", "static, given"])
def test_a_static_cache_used_again_forgets_the_first_prompt(model, cache):
    options = {
        name: value(model) if callable(value) else value for name, value in CACHES[cache].items()
    }
    generate(model, row(9, seed=77), **options)
    if "past_key_values" in options:
        options["past_key_values"].reset()
    found = generate(model, QUESTION, **options)
    tokens, scores = plain_decode(model, QUESTION)
    assert torch.equal(found.sequences, tokens)
    assert differ(torch.stack(found.logits), scores) < NEAR


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("rows", [ROWS, PAIR, [ROWS[1], ROWS[3]]], ids=["mixed", "images", "text"])
def test_a_row_of_a_left_padded_batch_generates_as_alone(model, cache, rows):
    found = generate(model, batch(rows, "left"), **CACHES[cache])
    scores = torch.stack(found.logits, 1)
    for i, alone in enumerate(rows):
        expected = generate(model, alone)
        assert torch.equal(found.sequences[i, -NEW_TOKENS:], expected.sequences[0, -NEW_TOKENS:])
        assert differ(scores[i], torch.stack(expected.logits, 1)[0]) < NEAR


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_padded_batch_scores_as_alone(model, side):
    inputs = batch(ROWS, side)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    mask = marked(model, inputs["attention_mask"])
    together = logits(model, **inputs, **mask, position_ids=positions)
    for i, alone in enumerate(ROWS):
        expected = logits(model, **alone, **marked(model, torch.ones_like(alone["input_ids"])))
        found = together[i][inputs["attention_mask"][i].bool()]
        assert differ(found, expected[0]) < NEAR


def test_what_stands_in_padding_changes_nothing(model):
    inputs = batch(ROWS, "left")
    other = inputs["input_ids"].clone()
    other[inputs["attention_mask"] == 0] = 33
    mask = marked(model, inputs["attention_mask"])
    kept = inputs["attention_mask"].bool()
    first = logits(model, **inputs, **mask)
    second = logits(model, **{**inputs, "input_ids": other}, **mask)
    assert torch.equal(first[kept], second[kept])


# beams, return sequences, assistance


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_beams_are_those_found_without_a_cache(model, cache):
    inputs = batch([*PAIR, ROWS[1]], "left")
    options = {"num_beams": 3, "num_return_sequences": 2}
    found = generate(model, inputs, **options, **CACHES[cache])
    expected = generate(model, inputs, **options, use_cache=False)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(
        found.sequences_scores, expected.sequences_scores, atol=NEAR, rtol=NEAR
    )


def test_beams_of_a_row_are_those_of_the_row_alone(model):
    rows = [*PAIR, ROWS[1]]
    found = generate(model, batch(rows, "left"), num_beams=3).sequences
    for i, alone in enumerate(rows):
        expected = generate(model, alone, num_beams=3).sequences
        assert torch.equal(found[i, -NEW_TOKENS:], expected[0, -NEW_TOKENS:])


def test_several_return_sequences_sample_as_the_repeated_row(model):
    torch.manual_seed(3)
    found = generate(model, QUESTION, do_sample=True, num_return_sequences=3)
    repeated = {
        "input_ids": QUESTION["input_ids"].repeat_interleave(3, 0),
        "pixel_values": QUESTION["pixel_values"].repeat_interleave(3, 0),
    }
    torch.manual_seed(3)
    expected = generate(model, repeated, do_sample=True)
    assert_same_generation(found, expected)
    # Each is scored by its own sample's guidance.
    for i in range(3):
        whole = {**QUESTION, "input_ids": found.sequences[i : i + 1]}
        mask = marked(model, prompt_mask(whole, [QUESTION["input_ids"].shape[1]]))
        scores = logits(model, **whole, **mask)[0, -NEW_TOKENS - 1 : -1]
        assert differ(torch.stack(found.logits, 1)[i], scores) < NEAR


@pytest.mark.parametrize("prompt", [QUESTION, row(9, seed=5)], ids=["image", "text"])
def test_prompt_lookup_finds_the_same_tokens(model, prompt):
    # A prompt that repeats itself, so that candidates are found.
    again = prompt["input_ids"][:, -4:]
    inputs = extend(prompt, torch.cat([again, again], 1))
    expected = generate(model, inputs, max_new_tokens=8)
    found = generate(model, inputs, max_new_tokens=8, prompt_lookup_num_tokens=3)
    # 4.57 may give one token too many, with LLaVA too.
    length = expected.sequences.shape[1]
    assert torch.equal(found.sequences[:, :length], expected.sequences)
    assert differ(torch.stack(found.logits[:8]), torch.stack(expected.logits)) < NEAR


@pytest.mark.parametrize("helper", ["itself", "another HyperLLaVA", "a LLaVA", "the other scope"])
def test_assisted_generation_finds_the_same_tokens(models, mode, helper):
    model = models[mode]
    assistant = {
        "itself": lambda: tiny_model(visual_expert="both", **MODES[mode]),
        "another HyperLLaVA": lambda: tiny_model(seed=5, **MODES[mode]),
        "a LLaVA": lambda: as_llava(model),
        "the other scope": lambda: models["token" if mode in PROMPT else "prompt mean"],
    }[helper]()
    inputs = row(8, seed=21)
    expected = generate(model, inputs, max_new_tokens=8)
    found = generate(model, inputs, max_new_tokens=8, assistant_model=assistant)
    assert_same_generation(found, expected)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_assisted_generation_over_a_history_is_guided_by_its_first_prompt(model, mode):
    inputs = row(8, seed=21)
    mask = prompt_mask(inputs, [5])
    assistant = tiny_model(visual_expert="both", **MODES[mode])
    expected = generate(model, inputs, max_new_tokens=8, guidance_mask=mask)
    for helper in (assistant, as_llava(model)):
        found = generate(
            model, inputs, max_new_tokens=8, guidance_mask=mask, assistant_model=helper
        )
        assert_same_generation(found, expected)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_an_assistant_of_the_same_weights_is_always_believed(models, mode):
    """Its guidance is the prompt's in every round, not that of the tokens since."""
    assistant = tiny_model(visual_expert="both", **MODES[mode])
    assistant.generation_config.update(
        num_assistant_tokens=5,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    calls = []
    model = models[mode]
    hook = model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    generate(model, row(8, seed=21), max_new_tokens=12, assistant_model=assistant)
    hook.remove()
    assert len(calls) == 2  # 5 guesses and one token of its own a call
