"""torch.compile and torch.export: prefill with images, static-cache decoding, one exported step.

The compiler's "eager" backend is used: it traces and breaks as others do, and compiles no C++.
"""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, StaticCache

from hyperllava_hf.modeling.carrier_hyperllava import get_carried
from tests.modeling.scope_modes import NEAR, generate, marked
from tests.modeling.tiny_models import batch, differ, logits, row, tiny_model

ROWS = [row(4, "image", 5, seed=1), row(3, "image", 9, seed=2)]
OTHERS = [row(2, "image", 3, seed=5), row(1, "image", 6, seed=6)]


@pytest.fixture(scope="module", params=["token", "prompt"])
def model(request):
    return tiny_model(visual_expert="both", language_guidance_scope=request.param)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def build_cache(model, kind):
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    return StaticCache(config=model.config.get_text_config(), max_cache_len=32)


def compiled_prefill(model, cache, inputs):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mask = marked(model, inputs["attention_mask"])
    with torch.no_grad():
        return compiled(**inputs, **mask, past_key_values=cache).logits


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_prefill_with_images_compiles_without_a_break(model, kind):
    inputs = batch(ROWS)
    found = compiled_prefill(model, build_cache(model, kind), inputs)
    kept = inputs["attention_mask"].bool()
    expected = logits(model, **inputs, **marked(model, inputs["attention_mask"]))
    assert differ(found[kept], expected[kept]) < NEAR
    assert not counters["graph_break"]


def test_a_compiled_prefill_says_if_image_tokens_and_images_differ(model):
    inputs = batch(ROWS)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises((RuntimeError, ValueError), match="image tokens do not match"):
        compiled_prefill(model, None, inputs)


def test_static_cache_decoding_is_one_graph_without_breaks(model):
    """Two conversations: the second continues neither the cache nor the guidance of the first."""
    expected = [generate(model, batch(rows), max_new_tokens=8) for rows in (ROWS, OTHERS)]
    settings = CompileConfig(fullgraph=True, backend="eager", mode=None)
    settings._compile_all_devices = True
    for rows, plain in zip((ROWS, OTHERS), expected, strict=True):
        found = generate(
            model,
            batch(rows),
            max_new_tokens=8,
            cache_implementation="static",
            compile_config=settings,
        )
        assert torch.equal(found.sequences, plain.sequences)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_that_a_compiled_prefill_filled_follows_its_rows(kind):
    model = tiny_model(language_guidance_scope="prompt")
    inputs = batch(ROWS)
    cache = build_cache(model, kind)
    compiled_prefill(model, cache, inputs)
    before = {n: [w.clone() for w in weights] for n, weights in get_carried(cache).items()}
    cache.reorder_cache(torch.tensor([1, 0]))
    for n, weights in get_carried(cache).items():
        assert all(torch.equal(w, old[[1, 0]]) for w, old in zip(weights, before[n], strict=True))


def test_a_reset_cache_takes_a_compiled_prefills_new_prompt():
    """4.57 keeps one static cache for all calls of `generate`, and resets it between them."""
    model = tiny_model(language_guidance_scope="prompt")
    cache = build_cache(model, "static")
    compiled_prefill(model, cache, batch(ROWS))
    cache.reset()
    assert get_carried(cache) is None
    inputs = batch(OTHERS)
    found = compiled_prefill(model, cache, inputs)
    expected = logits(model, **inputs, guidance_mask=inputs["attention_mask"])
    kept = inputs["attention_mask"].bool()
    assert differ(found[kept], expected[kept]) < NEAR


# export


class Step(torch.nn.Module):
    """One step as a function of tensors; a model's own forward takes open keywords."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, pixel_values, guidance_mask=None):
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            guidance_mask=guidance_mask,
            use_cache=False,
        ).logits


def export(model, inputs, strict, dynamic_shapes=None):
    with torch.no_grad():
        return torch.export.export(
            Step(model).eval(), (), kwargs=inputs, strict=strict, dynamic_shapes=dynamic_shapes
        ).module()


def test_one_step_exports(model):
    inputs = batch(ROWS)
    inputs |= marked(model, inputs["attention_mask"])
    found = export(model, inputs, strict=True)(**inputs)
    assert differ(found, logits(model, **inputs)) < NEAR


def test_an_exported_step_takes_other_batches_and_lengths(model):
    """The number of images alone is fixed: LLaVA lists them one by one."""
    inputs = batch(ROWS)
    inputs |= marked(model, inputs["attention_mask"])
    auto = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    shapes = {name: dict(auto) for name in inputs if name != "pixel_values"}
    exported = export(model, inputs, strict=False, dynamic_shapes={**shapes, "pixel_values": None})
    other = batch([*OTHERS, row(6, seed=7)])
    other |= marked(model, other["attention_mask"])
    kept = other["attention_mask"].bool()
    assert differ(exported(**other)[kept], logits(model, **other)[kept]) < NEAR
