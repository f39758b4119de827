"""The scope table: chunked prefill, packing and empty prompts."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hyperllava_hf.modeling.modeling_hyperllava import HyperLlavaModel
from tests.modeling.scope_modes import (
    NEAR,
    NEW_TOKENS,
    PAIR,
    PROMPT,
    QUESTION,
    TOKEN,
    assert_same_generation,
    generate,
)
from tests.modeling.tiny_models import (
    BOS,
    ROWS,
    batch,
    differ,
    images,
    logits,
    row,
    tiny_config,
    tiny_model,
)

# chunked prefill


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunked_prefill_of_text_is_the_whole(model, chunk):
    inputs = row(12, seed=71)
    assert_same_generation(
        generate(model, inputs, prefill_chunk_size=chunk), generate(model, inputs)
    )


def merged_embeddings(model, inputs):
    """The decoder's input embeddings of a prompt with images."""
    seen = {}

    def catch(module, args, kwargs):
        seen.update(kwargs)

    hook = model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    logits(model, **inputs)
    hook.remove()
    return seen["inputs_embeds"]


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
def test_chunked_prefill_of_images_as_embeddings_is_the_whole(model):
    embeds = merged_embeddings(model, QUESTION)
    cache, chunks = DynamicCache(), []
    for part in embeds.split(4, dim=1):
        chunks.append(logits(model, inputs_embeds=part, past_key_values=cache))
    assert differ(torch.cat(chunks, 1), logits(model, **QUESTION)) < NEAR
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    found = generate(model, {"inputs_embeds": embeds, "attention_mask": mask})
    expected = generate(model, QUESTION)
    assert torch.equal(found.sequences, expected.sequences[:, -NEW_TOKENS:])


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_chunked_prefill_under_prompt_raises(model):
    with pytest.raises(ValueError, match=r"prefill_chunk_size=3.*'token'"):
        generate(model, row(12, seed=71), prefill_chunk_size=3)
    config = GenerationConfig(prefill_chunk_size=3, max_new_tokens=2)
    with pytest.raises(ValueError, match="prefill_chunk_size=3"):
        model.generate(**row(12, seed=71), generation_config=config)


# packing


def packed(*rows):
    ids = torch.cat([r["input_ids"] for r in rows], 1)
    positions = torch.cat([torch.arange(r["input_ids"].shape[1]) for r in rows])[None]
    return {"input_ids": ids, "position_ids": positions, **images(rows)}


@pytest.mark.parametrize("mode", TOKEN, indirect=True)
def test_a_packed_sample_is_as_alone(model):
    found = logits(model, **packed(*ROWS), use_cache=False)
    expected = torch.cat([logits(model, **r) for r in ROWS], 1)
    assert differ(found, expected) < NEAR


LENGTHS = {
    "two": [row(4), row(5)],
    "images": [QUESTION, row(3)],
    "single tokens": [row(), row()],
    "longer first": [row(6), row()],
}


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_restarting_positions_raise_under_prompt(model, rows):
    with pytest.raises(ValueError, match=r"position_ids that restart.*'token'"):
        logits(model, **packed(*LENGTHS[rows]))


def test_padding_between_packed_samples_hides_nothing(models):
    inputs = {
        "input_ids": torch.tensor([[BOS, 5, 6, 0, BOS, 7]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 0, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 1, 1]]),
    }
    with pytest.raises(ValueError, match="position_ids that restart"):
        logits(models["prompt mean"], **inputs)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_cumulative_lengths_raise_under_prompt(model):
    lengths = torch.tensor([0, 4, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cu_seq_lens.*'token'"):
        logits(model, **row(8), cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)


SERVED = ["vllm", "vllm_mla", "sglang", "paged|eager", "paged|sdpa", "paged_attention"]


@pytest.mark.parametrize("name", SERVED)
def test_serving_attention_implementations_raise_under_prompt(name):
    model = tiny_model(language_guidance_scope="prompt")
    model.config.text_config._attn_implementation_internal = name
    with pytest.raises(ValueError, match=rf"{name.split('|')[0]}.*generate.*'token'"):
        logits(model, **row(8))


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_a_server_is_refused_under_prompt_while_it_builds_the_model(scope, monkeypatch):
    registered = type(ALL_ATTENTION_FUNCTIONS)._global_mapping
    monkeypatch.setitem(registered, "vllm", registered["sdpa"])
    config = tiny_config(language_guidance_scope=scope)
    config.text_config._attn_implementation = "vllm"
    with torch.device("meta"):
        if scope == "token":
            HyperLlavaModel(config)
            return
        with pytest.raises(ValueError, match=r"'vllm'.*generate.*'token'"):
            HyperLlavaModel(config)


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_positions_of_a_left_padded_batch_are_no_packing(model):
    inputs = batch(ROWS, "left")
    for pad_position in (0, 1):
        positions = inputs["attention_mask"].cumsum(-1) - 1
        positions[inputs["attention_mask"] == 0] = pad_position
        mask = inputs["attention_mask"]
        logits(model, **inputs, position_ids=positions, guidance_mask=mask)
        logits(model, **inputs, position_ids=positions)


# empty prompts


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_an_empty_prompt_has_guidance_0_and_one_warning(model, warnings_of):
    inputs = batch(PAIR, "left")
    mask = inputs["attention_mask"].clone()
    mask[0] = 0
    found = logits(model, **inputs, guidance_mask=mask)
    assert found.isfinite().all()
    (message,) = warnings_of()
    assert "empty prompt" in message
    # The other row's guidance is its own.
    whole = logits(model, **inputs, guidance_mask=inputs["attention_mask"])
    assert torch.equal(found[1], whole[1])
    seen = []
    expert = model.model.language_model.layers[-1].language_expert
    hook = expert.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    logits(model, **inputs, guidance_mask=mask)
    hook.remove()
    assert not seen[0][0].any()
    assert seen[0][1].any()


@pytest.mark.parametrize("mode", PROMPT, indirect=True)
def test_a_row_of_padding_alone_stays_finite_and_moves_no_other(model):
    inputs = batch(PAIR, "right")
    mask = inputs["attention_mask"].clone()
    mask[0] = 0
    found = logits(model, **{**inputs, "attention_mask": mask}, guidance_mask=mask)
    expected = logits(model, **inputs, guidance_mask=inputs["attention_mask"])
    assert found.isfinite().all()
    assert differ(found[1], expected[1]) < NEAR
