"""The scope table: conversations, training rows, prefix caches and scoring."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.scope_modes import (
    NEAR,
    NEW_TOKENS,
    PAIR,
    PROMPT,
    QUESTION,
    TOKEN,
    assert_same_generation,
    extend,
    generate,
    marked,
)
from tests.modeling.tiny_models import (
    ROWS,
    batch,
    differ,
    logits,
    prompt_mask,
    row,
)

# conversations


def conversation(model, first=QUESTION):
    """First prompt, its generated answer, and the whole history with a second question."""
    answer = generate(model, first)
    second = torch.tensor([[7, 8, 9, 10]])
    history = {**first, "input_ids": torch.cat([answer.sequences, second], 1)}
    return answer, history


@pytest.mark.parametrize("first", [QUESTION, row(6, seed=31), PAIR[1]], ids=["1", "0", "2"])
def test_continuing_a_returned_cache_is_a_fresh_call_over_the_history(model, first):
    answer, history = conversation(model, first)
    mask = prompt_mask(history, [first["input_ids"].shape[1]])
    fresh = generate(model, history, **marked(model, mask))
    continued = generate(
        model, {"input_ids": history["input_ids"]}, past_key_values=answer.past_key_values
    )
    assert_same_generation(continued, fresh)


def test_the_second_question_may_bring_an_image(model):
    first = row(6, seed=31)
    answer = generate(model, first)
    second = row(1, "image", 3, seed=32)
    history = {
        "input_ids": torch.cat([answer.sequences, second["input_ids"]], 1),
        "pixel_values": second["pixel_values"],
    }
    mask = marked(model, prompt_mask(history, [first["input_ids"].shape[1]]))
    fresh = logits(model, **history, **mask)
    new = history["input_ids"][:, answer.past_key_values.get_seq_length() :]
    continued = logits(
        model,
        input_ids=new,
        pixel_values=second["pixel_values"],
        past_key_values=answer.past_key_values,
    )
    assert differ(continued, fresh[:, -new.shape[1] :]) < NEAR


def test_a_batch_of_conversations_continues_as_each_alone(model):
    inputs = batch(PAIR, "left")
    answer = generate(model, inputs)
    second = torch.tensor([[7, 8, 9], [11, 12, 13]])
    longer = extend(inputs, torch.cat([answer.sequences[:, -NEW_TOKENS:], second], 1))
    longer.pop("pixel_values")
    continued = generate(model, longer, past_key_values=answer.past_key_values)
    for i, first in enumerate(PAIR):
        tokens = torch.cat([answer.sequences[i : i + 1, -NEW_TOKENS:], second[i : i + 1]], 1)
        history = extend(first, tokens)
        mask = prompt_mask(history, [first["input_ids"].shape[1]])
        alone = generate(model, history, **marked(model, mask))
        assert torch.equal(continued.sequences[i, -NEW_TOKENS:], alone.sequences[0, -NEW_TOKENS:])


def test_a_training_row_has_the_guidance_of_its_prompt(model):
    answer, _ = conversation(model)
    whole = {**QUESTION, "input_ids": answer.sequences}
    labels = answer.sequences.clone()
    labels[:, :-NEW_TOKENS] = -100
    scores = logits(model, **whole, labels=labels)[0, -NEW_TOKENS - 1 : -1]
    assert differ(scores, torch.stack(answer.logits, 1)[0]) < NEAR


def test_training_rows_of_a_right_padded_batch_have_each_its_own_prompt(model):
    rows = [*PAIR, ROWS[1]]
    inputs = batch(rows, "right")
    lengths = [3, 11, 2]
    mask = prompt_mask(inputs, lengths)
    labels = inputs["input_ids"].masked_fill(mask.bool() | (inputs["attention_mask"] == 0), -100)
    found = model(**inputs, labels=labels)
    for i, alone in enumerate(rows):
        own = labels[i : i + 1, : alone["input_ids"].shape[1]]
        expected = logits(model, **alone, labels=own)
        assert differ(found.logits[i, : own.shape[1]], expected[0]) < NEAR


def test_a_later_user_turn_of_a_training_row_does_not_move_its_guidance(model):
    """-100, answer, -100, answer: the prompt ends where the first answer begins."""
    _answer, history = conversation(model)
    length = QUESTION["input_ids"].shape[1]
    labels = history["input_ids"].clone()
    labels[:, :length] = -100
    labels[:, -4:] = -100
    mask = marked(model, prompt_mask(history, [length]))
    assert torch.equal(logits(model, **history, labels=labels), logits(model, **history, **mask))


def test_a_label_on_position_0_starts_no_answer(models):
    model = models["prompt mean"]
    inputs = row(8, seed=41)
    labels = inputs["input_ids"].clone()
    labels[:, 1:6] = -100
    mask = prompt_mask(inputs, [6])
    assert torch.equal(
        logits(model, **inputs, labels=labels), logits(model, **inputs, guidance_mask=mask)
    )


def test_guidance_mask_wins_over_labels(models):
    model = models["prompt mean"]
    inputs, mask = row(8, seed=41), prompt_mask(row(8, seed=41), [4])
    labels = inputs["input_ids"].clone()
    labels[:, :7] = -100
    with_labels = logits(model, **inputs, labels=labels, guidance_mask=mask)
    assert torch.equal(with_labels, logits(model, **inputs, guidance_mask=mask))


# prefix caches


def test_a_prefix_cache_copied_and_extended_has_the_guidance_of_the_prefix(model):
    prefix, tail = row(2, "image", 3, seed=51), torch.tensor([[21, 22, 23, 24]])
    cache = DynamicCache()
    logits(
        model,
        **prefix,
        past_key_values=cache,
        **marked(model, torch.ones_like(prefix["input_ids"])),
    )
    whole = extend(prefix, tail)
    mask = marked(model, prompt_mask(whole, [prefix["input_ids"].shape[1]]))
    expected = logits(model, **whole, **mask)[:, -4:]
    for _ in range(2):
        copied = copy.deepcopy(cache)
        assert differ(logits(model, input_ids=tail, past_key_values=copied), expected) < NEAR
        # What one copy goes through is nothing to the next.
        copied.batch_repeat_interleave(3)
    other = torch.tensor([[31, 32]])
    expected = logits(
        model,
        **extend(prefix, other),
        **marked(model, prompt_mask(extend(prefix, other), [prefix["input_ids"].shape[1]])),
    )[:, -2:]
    assert differ(logits(model, input_ids=other, past_key_values=cache), expected) < NEAR


def test_generate_extends_a_prefix_cache(model):
    prefix, tail = row(2, "image", 3, seed=51), torch.tensor([[21, 22, 23, 24]])
    cache = DynamicCache()
    logits(
        model,
        **prefix,
        past_key_values=cache,
        **marked(model, torch.ones_like(prefix["input_ids"])),
    )
    whole = extend(prefix, tail)
    mask = marked(model, prompt_mask(whole, [prefix["input_ids"].shape[1]]))
    expected = generate(model, whole, **mask)
    found = generate(model, {"input_ids": whole["input_ids"]}, past_key_values=copy.deepcopy(cache))
    assert_same_generation(found, expected)


def filled_cache(model):
    """A cache filled without experts, so that it carries no weights."""
    cache = DynamicCache()
    with model.disable_experts():
        logits(model, **row(6, seed=61), past_key_values=cache)
    return cache


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_a_filled_cache_without_guidance_raises(model):
    for length in (1, 3):
        with pytest.raises(ValueError, match=r"carries no language expert weights.*again"):
            logits(
                model,
                input_ids=torch.full((1, length), 7),
                past_key_values=filled_cache(model),
            )
    with pytest.raises(ValueError, match="carries no language expert weights"):
        generate(model, row(9, seed=62), past_key_values=filled_cache(model))


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
@pytest.mark.parametrize("length", [1, 3])
def test_guidance_mask_beside_a_filled_cache_raises(model, length):
    cache = DynamicCache()
    prefix = row(6, seed=61)
    mask = torch.ones_like(prefix["input_ids"])
    logits(model, **prefix, past_key_values=cache, guidance_mask=mask)
    tail = torch.full((1, length), 7)
    with pytest.raises(ValueError, match=r"guidance_mask beside a filled cache.*Leave"):
        logits(model, input_ids=tail, past_key_values=cache, guidance_mask=torch.ones(1, length))
    whole = extend(prefix, tail)
    with pytest.raises(ValueError, match="guidance_mask beside a filled cache"):
        generate(
            model, whole, past_key_values=cache, guidance_mask=torch.ones_like(whole["input_ids"])
        )


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
def test_token_scope_reads_any_filled_cache_and_ignores_guidance_mask(model):
    logits(model, input_ids=torch.tensor([[7]]), past_key_values=filled_cache(model))
    inputs = row(6, seed=61)
    plain = logits(model, **inputs)
    masked = logits(model, **inputs, guidance_mask=prompt_mask(inputs, [3]))
    assert torch.equal(plain, masked)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_another_number_of_rows_than_the_cache_has_raises_both_numbers(model):
    cache = DynamicCache()
    inputs = batch([row(6, seed=61), row(6, seed=62)])
    logits(model, **inputs, past_key_values=cache, guidance_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"2 samples in the cache, but 3 rows"):
        logits(model, input_ids=torch.full((3, 1), 7), past_key_values=cache)


# scoring


def test_scoring_equals_the_sampling_log_probabilities_with_the_mask(model, warnings_of):
    inputs = batch(PAIR, "left")
    torch.manual_seed(0)
    sampled = generate(model, inputs, do_sample=True)
    whole = extend(inputs, sampled.sequences[:, -NEW_TOKENS:])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW_TOKENS))
    positions = (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    found = logits(model, **whole, **marked(model, mask), position_ids=positions)
    found = found[:, -NEW_TOKENS - 1 : -1].log_softmax(-1)
    expected = torch.stack(sampled.logits, 1).log_softmax(-1)
    assert differ(found, expected) < NEAR
    assert warnings_of() == []


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_scoring_without_mask_or_labels_warns_once_and_names_guidance_mask(model, warnings_of):
    for _ in range(2):
        logits(model, **row(8))
    (message,) = warnings_of()
    assert "guidance_mask" in message


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_generate_and_labels_need_no_warning(model, warnings_of):
    generate(model, batch(ROWS), num_beams=2)
    inputs = row(8)
    generate(model, inputs, use_cache=False)
    generate(model, inputs, prompt_lookup_num_tokens=2)
    labels = inputs["input_ids"].clone()
    labels[:, :4] = -100
    logits(model, **inputs, labels=labels)
    assert warnings_of() == []


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
def test_token_scope_has_nothing_to_warn_of(model, warnings_of):
    logits(model, **batch(ROWS))
    generate(model, batch(ROWS))
    assert warnings_of() == []
