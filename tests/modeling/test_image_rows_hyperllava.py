"""Images find their rows again: under beams, in guesses copied from a prompt, in later turns."""

import copy

import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaProcessor
from hyperllava_hf.checkpoints import get_bundled_checkpoint
from hyperllava_hf.modeling.image_rows_hyperllava import count_images, cut_candidates
from tests.modeling.scope_modes import MODES, generate
from tests.modeling.tiny_models import IMAGE, batch, row, tiny_model

SEVERAL = [row("image", 3, "image", seed=21), row(5, seed=22), row("image", 4, seed=23)]
SCENES = "examples/scene-{}.png"
QUESTION = "Describe the image."


@pytest.fixture(scope="module")
def processor():
    return HyperLlavaProcessor.from_pretrained(get_bundled_checkpoint())


@pytest.fixture(scope="module", params=["token", "prompt"])
def digits(request):
    model = HyperLlavaForConditionalGeneration.from_pretrained(
        get_bundled_checkpoint(), language_guidance_scope=request.param
    )
    return model.eval()


def ask(processor, conversation):
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return processor.apply_chat_template(conversation, return_tensors="pt", **options)


def say(text, *numbers):
    content = [{"type": "image", "path": SCENES.format(number)} for number in numbers]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


@pytest.mark.parametrize("mode", MODES)
def test_beams_over_embeddings_are_those_over_ids_with_several_images_a_row(mode):
    model = tiny_model(**MODES[mode])
    inputs = batch(SEVERAL)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    given = {k: v for k, v in inputs.items() if k != "input_ids"}
    expected = generate(model, inputs, num_beams=2).sequences[:, inputs["input_ids"].shape[1] :]
    found = generate(model, {**given, "inputs_embeds": embeds}, num_beams=2).sequences
    assert torch.equal(found, expected)


def test_counts_are_one_a_row_where_placeholders_do_not_tell():
    marks = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert count_images(marks, 3) == [2, 0, 1]
    assert count_images(torch.zeros(2, 3, dtype=torch.bool), 2) == [1, 1]


@pytest.mark.parametrize(
    ("after", "kept"), [([3, 4, IMAGE, IMAGE, 6], [3, 4]), ([IMAGE, 3, 4, 6, 8], [])]
)
def test_guesses_end_before_an_image(after, kept):
    ids = torch.tensor([[5, 7, 9, *after, 7, 9]])
    lookup = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor([2]), num_output_tokens=5, max_length=40
    )
    found, scores = cut_candidates(lookup, IMAGE).get_candidates(ids)
    assert (found[0].tolist(), scores) == ([*ids[0].tolist(), *kept], None)


@pytest.mark.parametrize("num_guessed", [2, 5])
def test_prompt_lookup_says_what_plain_decoding_says(digits, processor, num_guessed):
    inputs = ask(processor, [say(QUESTION, 1)])
    options = {"max_new_tokens": 20, "do_sample": False}
    expected = digits.generate(**inputs, **options)
    found = digits.generate(**inputs, prompt_lookup_num_tokens=num_guessed, **options)
    assert torch.equal(found, expected)


def test_a_later_turn_over_a_filled_cache_sees_its_own_image(digits, processor):
    options = {"max_new_tokens": 20, "do_sample": False}
    first = ask(processor, [say(QUESTION, 1)])
    out = digits.generate(**first, return_dict_in_generate=True, **options)
    words = processor.decode(
        out.sequences[0, first["input_ids"].shape[1] :], skip_special_tokens=True
    )
    answer = {"role": "assistant", "content": words}
    history = [say(QUESTION, 1), answer, say("How many digits are there?", 2)]
    whole = ask(processor, history)
    marks = {name: whole.pop(name) for name in ("guidance_mask",) if name in whole}
    seen = out.past_key_values.get_seq_length()
    assert torch.equal(whole["input_ids"][:, :seen], out.sequences[:, :seen])

    def go_on(pixel_values):
        cache = copy.deepcopy(out.past_key_values)
        given = {**whole, "pixel_values": pixel_values, "past_key_values": cache}
        return digits.generate(**given, **options)

    assert torch.equal(
        go_on(whole["pixel_values"][1:]), digits.generate(**whole, **marks, **options)
    )
    # Not by chance: another image there gives another answer.
    other = ask(processor, [say(QUESTION, 4)])["pixel_values"]
    assert not torch.equal(go_on(other), go_on(whole["pixel_values"][1:]))
