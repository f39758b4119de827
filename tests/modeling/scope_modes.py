"""The modes of the scope table, and what its tests share.

The oracle of a cell is the plain call: one row at a time, the whole text in one forward without a
cache, the prompt marked by `guidance_mask` under scope "prompt".
"""

import torch

from tests.modeling.tiny_models import EOS, IMAGE, differ, logits, prompt_mask, row

# The same sums in another order and shape; values are of order 1-10.
NEAR = 1e-4

MODES = {
    "token": {},
    "token from embeddings": {"language_expert_layers": "all"},
    "prompt mean": {"language_guidance_scope": "prompt"},
    "prompt text": {"language_guidance_scope": "prompt", "language_guidance_pooling": "text"},
    "prompt last": {"language_guidance_scope": "prompt", "language_guidance_pooling": "last"},
    "prompt from embeddings": {
        "language_guidance_scope": "prompt",
        "language_expert_layers": "all",
    },
}
TOKEN = [name for name in MODES if name.startswith("token")]
PROMPT = [name for name in MODES if name.startswith("prompt")]
NEW_TOKENS = 5
QUESTION = row(4, "image", 5, seed=11)
PAIR = [row(3, "image", 4, seed=12), row("image", 1, "image", 3, seed=13)]


def is_prompt(model):
    return model.config.language_guidance_scope == "prompt"


def marked(model, mask):
    """`guidance_mask` where the scope reads one."""
    return {"guidance_mask": mask} if is_prompt(model) else {}


def generate(model, inputs, **options):
    # A random model would say <image>, or stop; neither belongs to an answer here.
    options = {"suppress_tokens": [IMAGE, EOS], **options}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return model.generate(
        **inputs, return_dict_in_generate=True, output_logits=True, output_scores=True, **options
    )


def extend(inputs, tokens):
    """Append (B, n) tokens to every row."""
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
    if inputs.get("attention_mask") is not None:
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    return longer


def best(last):
    """The most likely token of each row (B, 1), but for those that `generate` suppresses here."""
    last = last.clone()
    last[:, [IMAGE, EOS]] = -torch.inf
    return last.argmax(-1, keepdim=True)


def plain_decode(model, inputs, steps=NEW_TOKENS):
    """Greedy decoding by whole forwards without a cache; (tokens, logits) of one row."""
    length = inputs["input_ids"].shape[1]
    scores = []
    for _ in range(steps):
        mask = prompt_mask(inputs, [length])
        last = logits(model, **inputs, **marked(model, mask), use_cache=False)[:, -1]
        scores.append(last)
        inputs = extend(inputs, best(last))
    return inputs["input_ids"], torch.stack(scores)


def assert_same_generation(found, expected):
    assert torch.equal(found.sequences, expected.sequences)
    assert differ(torch.stack(found.logits), torch.stack(expected.logits)) < NEAR
