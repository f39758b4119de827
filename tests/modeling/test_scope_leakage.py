"""The scope table: gradients, and what may not see what."""

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.scope_modes import (
    MODES,
    NEAR,
    PAIR,
    PROMPT,
    QUESTION,
    TOKEN,
    best,
    generate,
    is_prompt,
    marked,
    plain_decode,
)
from tests.modeling.tiny_models import (
    IMAGE,
    NUM_PATCHES,
    ROWS,
    TEXT,
    as_llava,
    batch,
    differ,
    is_expert,
    logits,
    prompt_mask,
    quiet_model,
    row,
    tiny_model,
)

# gradients


@pytest.fixture
def trainable(mode):
    model = tiny_model(visual_expert="both", **MODES[mode])
    return model.train()


def training_batch():
    inputs = batch(ROWS, "right")
    labels = inputs["input_ids"].masked_fill(prompt_mask(inputs, [6, 2, 12, 3]).bool(), -100)
    labels[inputs["attention_mask"] == 0] = -100
    return {**inputs, "labels": labels}


def gradients(model, *losses):
    model.zero_grad()
    sum(losses).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(trainable, reentrant):
    inputs = training_batch()
    expected = gradients(trainable, trainable(**inputs).loss)
    assert any(is_expert(name) for name in expected)
    trainable.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layer = trainable.model.language_model.layers[-1]
    layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(trainable, trainable(**inputs).loss)
    assert len(calls) == 2  # it did recompute
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_before_one_backward_give_the_sum_of_gradients(trainable, checkpointing):
    if checkpointing:
        trainable.gradient_checkpointing_enable({"use_reentrant": False})
    first = training_batch()
    second = {**batch([PAIR[0]], "right")}
    second["labels"] = second["input_ids"].masked_fill(
        prompt_mask(second, [5]).bool() | (second["input_ids"] == IMAGE), -100
    )
    apart = [gradients(trainable, trainable(**inputs).loss) for inputs in (first, second)]
    expected = {name: apart[0][name] + apart[1][name] for name in apart[0]}
    losses = trainable(**first).loss, trainable(**second).loss
    assert_same_gradients(gradients(trainable, *losses), expected)


def test_gradient_flows_through_the_guidance():
    for fields in MODES.values():
        model = tiny_model(**fields)
        inputs = row(8, seed=81)
        mask = prompt_mask(inputs, [4]) if is_prompt(model) else None
        embeds = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        seen = []
        experts = [m for n, m in model.named_modules() if n.endswith("3.language_expert")]
        hook = experts[0].register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[1])
        )
        model(inputs_embeds=embeds, guidance_mask=mask)
        hook.remove()
        (gradient,) = torch.autograd.grad(seen[0].square().sum() + seen[0].sum(), embeds)
        assert gradient.abs().sum() > 0
        assert seen[0].dtype == torch.float32


# leakage


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
def test_a_position_sees_nothing_after_it(model):
    inputs = row(3, "image", 9, seed=91)
    ids = inputs["input_ids"]
    expected = logits(model, **inputs)
    for t in range(4 + NUM_PATCHES, ids.shape[1]):
        other = ids.clone()
        other[:, t:] = (other[:, t:] + 13 - 3) % (IMAGE - 3) + 3
        found = logits(model, **{**inputs, "input_ids": other})
        assert torch.equal(found[:, :t], expected[:, :t])
        assert not torch.equal(found[:, t], expected[:, t])


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
@pytest.mark.parametrize("how", ["guidance_mask", "labels"])
def test_an_answer_never_steers_its_own_guidance(model, how):
    inputs = row(3, "image", 9, seed=91)
    ids, length = inputs["input_ids"], 11
    mask = prompt_mask(inputs, [length])
    expected = None
    for shift in (0, 13, 29):
        other = ids.clone()
        other[:, length:] = (other[:, length:] + shift - 3) % (IMAGE - 3) + 3
        marks = {"guidance_mask": mask}
        if how == "labels":
            marks = {"labels": other.masked_fill(mask.bool(), -100)}
        found = logits(model, **{**inputs, "input_ids": other}, **marks)[:, :length]
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_the_whole_prompt_steers_even_its_first_position(model):
    """What scope prompt means, and why it cannot be read in chunks."""
    inputs = row(9, seed=92)
    other = inputs["input_ids"].clone()
    other[:, -1] = 5
    first = logits(model, **inputs, guidance_mask=torch.ones_like(other))
    second = logits(model, input_ids=other, guidance_mask=torch.ones_like(other))
    assert differ(first[:, 0], second[:, 0]) > 1e-3


def test_one_image_never_moves_another(model):
    inputs = row(2, "image", 2, "image", 4, seed=93)
    pixels = inputs["pixel_values"].clone()
    pixels[1] += 1
    mask = marked(model, prompt_mask(inputs, [5]))
    first = logits(model, **inputs, **mask)
    second = logits(model, **{**inputs, "pixel_values": pixels}, **mask)
    second_image = 3 + NUM_PATCHES + 2
    assert torch.equal(first[:, :second_image], second[:, :second_image])
    assert differ(first[:, second_image:], second[:, second_image:]) > 1e-3


def test_rows_of_a_batch_never_move_one_another(model):
    inputs = batch(ROWS, "left")
    mask = marked(model, inputs["attention_mask"])
    ids = inputs["input_ids"].clone()
    ids[3, -3:] = torch.tensor([9, 8, 7])
    first = logits(model, **inputs, **mask)
    second = logits(model, **{**inputs, "input_ids": ids}, **mask)
    assert torch.equal(first[:3], second[:3])
    assert not torch.equal(first[3], second[3])


def test_interleaved_conversations_keep_apart(model):
    """Two caches, steps taking turns: nothing is kept in a module."""
    prompts, caches, outputs = [QUESTION, ROWS[3]], [DynamicCache(), DynamicCache()], [[], []]
    tokens = [None, None]
    for step in range(4):
        for i in range(2):
            if step == 0:
                mask = marked(model, torch.ones_like(prompts[i]["input_ids"]))
                found = logits(model, **prompts[i], **mask, past_key_values=caches[i])
            else:
                found = logits(model, input_ids=tokens[i], past_key_values=caches[i])
            outputs[i].append(found[0, -1])
            tokens[i] = best(found[:, -1])
    for i in range(2):
        _, expected = plain_decode(model, prompts[i], 4)
        assert differ(torch.stack(outputs[i]), expected[:, 0]) < NEAR


def test_deeper_and_odder_models_hold_too():
    """A prime number of blocks; experts on one block; guidance right below the last block."""
    for scope in ("token", "prompt"):
        for fields in (
            {"language_guidance_layer": 4},
            {"language_expert_layers": [4], "language_guidance_layer": 1},
            {"language_expert_layers": [0], "language_guidance_layer": None},
        ):
            model = tiny_model(
                language_guidance_scope=scope,
                text_config={**TEXT, "num_hidden_layers": 5},
                **fields,
            )
            found = generate(model, QUESTION)
            tokens, scores = plain_decode(model, QUESTION)
            assert torch.equal(found.sequences, tokens)
            assert differ(torch.stack(found.logits), scores) < NEAR


def test_fresh_experts_leave_every_mode_llavas(mode):
    model = quiet_model(visual_expert="both", **MODES[mode])
    llava = as_llava(model)
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        # 4.57's own LLaVA hands the copies of a row with several images the wrong ones.
        rows = [ROWS[0], ROWS[1], ROWS[3]] if "num_beams" in options else ROWS
        found = generate(model, batch(rows), **options)
        expected = generate(llava, batch(rows), **options)
        assert torch.equal(found.sequences, expected.sequences)
        for a, b in zip(found.logits, expected.logits, strict=True):
            assert torch.equal(a, b)
