"""The whole model: off is LLaVA bit for bit, and the ways of calling that are not a scope's."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, DynamicCache

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaModel
from hyperllava_hf.modeling.guidance_hyperllava import normalize_guidance
from tests.modeling.scope_modes import MODES, NEAR, extend, generate, marked
from tests.modeling.tiny_models import (
    IMAGE,
    NUM_BLOCKS,
    PAD,
    ROWS,
    VOCABULARY,
    as_llava,
    batch,
    differ,
    is_expert,
    logits,
    prompt_mask,
    quiet_model,
    row,
    tiny_config,
    tiny_model,
)

CALLS = {
    "an image": lambda: row(4, "image", 5),
    "an image at the end": lambda: row(4, "image"),
    "several images": lambda: row("image", 2, "image", "image", 3),
    "text": lambda: row(9),
    "a single token": lambda: row(),
    "mixed, left padding": lambda: batch(ROWS, "left"),
    "mixed, right padding": lambda: batch(ROWS, "right"),
    "a batch of one": lambda: batch([ROWS[0]]),
    "text, padded": lambda: batch([ROWS[1], ROWS[3]]),
}


# off is LLaVA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_off_and_fresh_are_llava_bit_for_bit(mode, dtype):
    fresh = quiet_model(visual_expert="both", **MODES[mode]).to(dtype)
    trained = tiny_model(visual_expert="both", **MODES[mode]).to(dtype)
    llava = as_llava(fresh)
    for name, call in CALLS.items():
        inputs = call()
        expected = logits(llava, **inputs)
        mask = torch.ones_like(inputs["input_ids"])
        assert torch.equal(logits(fresh, **inputs, **marked(fresh, mask)), expected), name
        with trained.disable_experts():
            assert torch.equal(logits(trained, **inputs), expected), name
        found = logits(trained, **inputs, **marked(trained, mask))
        assert not torch.equal(found, expected), name


@pytest.mark.parametrize("source", ["guided", "latent", "static"])
@pytest.mark.parametrize("visual", ["first", "second", "both", "none"])
def test_fresh_is_llava_for_every_source_and_placement(source, visual):
    fresh = quiet_model(expert_source=source, visual_expert=visual, language_expert_layers="all")
    inputs = batch(ROWS)
    assert torch.equal(logits(fresh, **inputs), logits(as_llava(fresh), **inputs))


def test_a_model_without_experts_has_llavas_parameters():
    model = quiet_model(visual_expert="none", language_expert_layers="none")
    assert not [name for name, _ in model.named_parameters() if is_expert(name)]
    llava = as_llava(model)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in llava.parameters())


def test_loss_and_gradients_of_a_fresh_model_are_llavas():
    fresh = quiet_model(visual_expert="both").train()
    llava = as_llava(fresh).train()
    inputs = batch(ROWS, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    ours, theirs = (model(**inputs, labels=labels).loss for model in (fresh, llava))
    assert torch.equal(ours, theirs)
    ours.backward()
    theirs.backward()
    expected = dict(llava.named_parameters())
    for name, parameter in fresh.named_parameters():
        if is_expert(name):
            continue
        other = name if name in expected else name.replace("vision_model.", "")
        grad = expected[other].grad
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:
            assert torch.equal(parameter.grad, grad), name


def test_disabling_is_for_a_moment_and_survives_an_error():
    model = tiny_model()
    inputs = row(5)
    before = logits(model, **inputs)
    with pytest.raises(KeyError), model.disable_experts():
        raise KeyError
    assert torch.equal(logits(model, **inputs), before)
    with model.disable_experts(), model.disable_experts():
        pass
    assert torch.equal(logits(model, **inputs), before)
    with model.disable_experts():
        with model.disable_experts():
            pass
        off = logits(model, **inputs)
    assert torch.equal(off, logits(as_llava(model), **inputs))


def test_generate_with_experts_off_is_llavas(mode):
    model = tiny_model(visual_expert="both", **MODES[mode])
    expected = generate(as_llava(model), batch(ROWS))
    with model.disable_experts():
        found = generate(model, batch(ROWS))
    assert torch.equal(found.sequences, expected.sequences)


# other ways of calling


def test_embeddings_give_what_their_ids_give(mode):
    model = tiny_model(**MODES[mode])
    inputs = row(9)
    mask = marked(model, prompt_mask(inputs, [6]))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(logits(model, inputs_embeds=embeds, **mask), logits(model, **inputs, **mask))
    found = generate(model, {"inputs_embeds": embeds})
    expected = generate(model, inputs)
    assert torch.equal(found.sequences, expected.sequences[:, 10:])


def test_without_ids_all_positions_count_as_text():
    """Pooling "text" then is pooling "mean": images cannot be told."""
    inputs = row(3, "image", 4)
    text = tiny_model(language_guidance_scope="prompt", language_guidance_pooling="text")
    mean = tiny_model(language_guidance_scope="prompt", language_guidance_pooling="mean")
    seen = []
    decoder = mean.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    mask = {"guidance_mask": torch.ones_like(inputs["input_ids"])}
    expected = logits(mean, **inputs, **mask)
    hook.remove()
    assert torch.equal(logits(text, inputs_embeds=seen[0], **mask), expected)
    assert not torch.equal(logits(text, **inputs, **mask), expected)


@pytest.mark.parametrize("both", [True, False])
def test_ids_and_embeddings_are_either_or(mode, both):
    model = tiny_model(**MODES[mode])
    ids = row(4)["input_ids"]
    given = {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)} if both else {}
    with pytest.raises(ValueError, match="exactly one of"):
        model(**given)


def test_hidden_states_and_attentions_are_counted_as_llavas_and_hold_the_guidance():
    model = tiny_model(visual_expert="both")
    model.set_attn_implementation("eager")
    llava = as_llava(model)
    llava.set_attn_implementation("eager")
    inputs = batch(ROWS, "right")
    seen = []
    expert = model.model.language_model.layers[3].language_expert
    hook = expert.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True, output_attentions=True)
        theirs = llava(**inputs, output_hidden_states=True, output_attentions=True)
    hook.remove()
    for ours, expected in (
        (found.hidden_states, theirs.hidden_states),
        (found.attentions, theirs.attentions),
    ):
        assert [tuple(t.shape) for t in ours] == [tuple(t.shape) for t in expected]
    assert len(found.hidden_states) == NUM_BLOCKS + 1
    # Below the first expert nothing differs from LLaVA but the images' projections.
    assert torch.equal(seen[0], normalize_guidance(found.hidden_states[2]))
    with torch.no_grad():
        last = model.lm_head(found.hidden_states[-1])
    assert torch.equal(last, found.logits)


def test_guidance_from_embeddings_is_hidden_state_0():
    model = tiny_model(language_expert_layers="all")
    seen = []
    expert = model.model.language_model.layers[3].language_expert
    hook = expert.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        found = model(**batch(ROWS), output_hidden_states=True)
    hook.remove()
    assert torch.equal(seen[0], normalize_guidance(found.hidden_states[0]))


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_logits_to_keep_keeps_the_last(keep):
    model, inputs = tiny_model(), row(3, "image", 4)
    expected = logits(model, **inputs)[:, -keep:]
    assert differ(logits(model, **inputs, logits_to_keep=keep), expected) < NEAR


def test_a_tuple_is_returned_where_asked_for():
    model, inputs = tiny_model(), row(3, "image", 4)
    with torch.no_grad():
        found = model(**inputs, return_dict=False)
    assert torch.equal(found[0], logits(model, **inputs))


def test_resizing_the_vocabulary_keeps_what_was(tmp_path):
    model, inputs = tiny_model(), row(3, "image", 4)
    before = logits(model, **inputs)
    model.resize_token_embeddings(VOCABULARY + 7)
    assert model.config.text_config.vocab_size == VOCABULARY + 7
    assert differ(logits(model, **inputs)[..., :VOCABULARY], before) < NEAR
    model.save_pretrained(tmp_path)
    again = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert differ(logits(again, **inputs), logits(model, **inputs)) < NEAR


def test_embeddings_can_be_got_and_set():
    for model in (tiny_model(), HyperLlavaModel(tiny_config())):
        embeddings = model.get_input_embeddings()
        assert embeddings.weight.shape == (VOCABULARY, 16)
        other = torch.nn.Embedding(VOCABULARY, 16)
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other
    model = tiny_model()
    head = torch.nn.Linear(16, VOCABULARY, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_finite_and_near(mode, dtype):
    model = tiny_model(visual_expert="both", **MODES[mode])
    inputs = batch(ROWS)
    mask = marked(model, inputs["attention_mask"])
    expected = logits(model, **inputs, **mask)
    found = logits(model.to(dtype), **inputs, **mask)
    assert found.dtype == dtype
    assert found.isfinite().all()
    # Each of four blocks rounds a few dozen values: some hundred eps of the largest.
    kept = inputs["attention_mask"].bool()
    scale = expected[kept].abs().max()
    assert (found.float() - expected)[kept].abs().mean() / scale < 20 * torch.finfo(dtype).eps
    assert generate(model, inputs).sequences.shape[1] == inputs["input_ids"].shape[1] + 5


@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_only_precision(mode, training):
    model = tiny_model(visual_expert="both", **MODES[mode]).train(training)
    inputs = batch(ROWS, "right")
    mask = marked(model, inputs["attention_mask"])
    expected = model(**inputs, **mask).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**inputs, **mask).logits
    assert found.isfinite().all()
    kept = inputs["attention_mask"].bool()
    error = (found.float() - expected)[kept].abs().mean() / expected[kept].abs().max()
    assert error < 20 * torch.finfo(torch.bfloat16).eps
    found.float().square().mean().backward()


def test_construction_on_the_meta_device(mode):
    with torch.device("meta"):
        model = HyperLlavaForConditionalGeneration(tiny_config(**MODES[mode]))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert all(p.numel() for p in model.parameters())


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("mode", ["token", "prompt mean"], indirect=True)
def test_attention_implementations_agree(mode, implementation):
    model = tiny_model(**MODES[mode])
    model.set_attn_implementation("eager")
    inputs = batch(ROWS, "right")
    mask = marked(model, inputs["attention_mask"])
    expected = logits(model, **inputs, **mask)
    model.set_attn_implementation({"text_config": implementation})
    assert model.config.text_config._attn_implementation == implementation
    kept = inputs["attention_mask"].bool()
    # transformers compiles flex attention, which needs a C++ compiler; eager computes the same.
    with torch.compiler.set_stance("force_eager"):
        found = logits(model, **inputs, **mask)
    assert differ(found[kept], expected[kept]) < NEAR


def test_attention_can_be_chosen_on_loading(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa"):
        model = HyperLlavaForConditionalGeneration.from_pretrained(
            tmp_path, attn_implementation=implementation
        )
        assert model.config.text_config._attn_implementation == implementation


def test_flash_attention_is_transformers_error_and_never_our_import(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"(?i)flash"):
        HyperLlavaForConditionalGeneration.from_pretrained(
            tmp_path, attn_implementation="flash_attention_2"
        )
    assert "flash_attn" not in sys.modules


def test_importing_the_package_imports_no_optional_one():
    lines = "import sys, hyperllava_hf.modeling, hyperllava_hf.processing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    optional = {"flash_attn", "bitsandbytes", "matplotlib"}
    assert not optional & set(done.stdout.split())


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_a_forward_and_a_decoding_step_compile_without_a_break(scope):
    model = tiny_model(language_guidance_scope=scope)
    inputs = row(5)
    extra = marked(model, torch.ones_like(inputs["input_ids"]))
    expected = logits(model, **inputs, **extra)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert differ(compiled(**inputs, **extra, use_cache=False).logits, expected) < NEAR
        cache = DynamicCache(config=model.config)
        model(**inputs, **extra, past_key_values=cache)
        step = torch.tensor([[7]])
        found = compiled(input_ids=step, past_key_values=cache).logits
    whole = extend(inputs, step)
    extra = marked(model, prompt_mask(whole, [6]))
    assert differ(found, logits(model, **whole, **extra)[:, -1:]) < NEAR


# looking at weights


def swiglu(z):
    gate, value = z.chunk(2, -1)
    return torch.nn.functional.silu(gate) * value


@pytest.mark.parametrize("visual", ["first", "second", "both", "none"])
def test_expert_weights_reproduce_the_updates(mode, visual):
    model = tiny_model(visual_expert=visual, **MODES[mode])
    inputs = row(3, "image", 4, "image", 2)
    mask = marked(model, prompt_mask(inputs, [6]))
    weights = model.expert_weights(**inputs, **mask)
    blocks = model.config.language_expert_blocks
    sites = {"both": ["first", "second"], "none": []}.get(visual, [visual])
    assert sorted(weights["language"]) == blocks
    assert sorted(weights["visual"]) == sites

    caught = {}
    hooks = []
    for n in blocks:
        mlp = model.model.language_model.layers[n].mlp
        layer = model.model.language_model.layers[n]
        hooks += [
            mlp.register_forward_hook(
                lambda module, args, output, n=n: caught.update(
                    {(n, "in"): args[0], (n, "mlp"): output}
                )
            ),
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda module, args, n=n: caught.update({(n, "h"): args[0]})
            ),
            layer.register_forward_hook(
                lambda module, args, output, n=n: caught.update({(n, "out"): output})
            ),
        ]
    logits(model, **inputs, **mask)
    for hook in hooks:
        hook.remove()
    for n in blocks:
        down, up = weights["language"][n]
        assert down.shape == (1, 2 * 3, 16)
        assert up.shape == (1, 16, 3)
        update = up[0] @ swiglu(down[0] @ caught[n, "in"][0, -1])
        expected = (caught[n, "out"] - caught[n, "h"] - caught[n, "mlp"])[0, -1]
        torch.testing.assert_close(update, expected, atol=1e-4, rtol=1e-3)
    for site in sites:
        down, up = weights["visual"][site]
        assert down.shape == (2, 2 * 3, 12 if site == "first" else 16)
        assert up.shape == (2, 16, 3)
    assert not any(module._forward_hooks for module in model.modules() if is_expert(str(module)))


@pytest.mark.parametrize("source", ["latent", "static"])
def test_weights_that_no_input_makes_have_no_leading_dimension(source):
    model = tiny_model(expert_source=source)
    weights = model.expert_weights(**row(3, "image", 4))
    for down, up in [*weights["language"].values(), *weights["visual"].values()]:
        assert down.ndim == up.ndim == 2


def test_expert_weights_of_a_position_are_that_positions():
    model = tiny_model()
    inputs = row(6)
    shorter = {"input_ids": inputs["input_ids"][:, :4]}
    found = model.expert_weights(position=3, **inputs)["language"][3]
    expected = model.expert_weights(**shorter)["language"][3]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# no state


def state_of(model):
    """Every attribute of every module, by identity; tensors also by version."""
    return {
        (path, name): (id(value), getattr(value, "_version", None))
        for path, module in model.named_modules()
        for name, value in {
            **module.__dict__,
            **module._parameters,
            **module._buffers,
        }.items()
        # 4.57 keeps the caches it made itself, and GenerationMixin its last settings.
        if name not in ("_cache",)
    }


def test_no_module_keeps_anything(mode):
    model = tiny_model(visual_expert="both", **MODES[mode])
    inputs = batch(ROWS)
    generate(model, inputs)  # transformers' own lazy attributes
    before = state_of(model)
    logits(model, **inputs, **marked(model, inputs["attention_mask"]))
    generate(model, inputs, num_beams=2)
    model.expert_weights(**inputs, **marked(model, inputs["attention_mask"]))
    with model.disable_experts():
        logits(model, **inputs)
    assert state_of(model) == before


# hostile calls


@pytest.mark.parametrize("mode", [m for m in MODES if m.startswith("prompt")], indirect=True)
@pytest.mark.parametrize("shape", [(1, 4), (2, 6), (6,), (1, 6, 1)])
def test_a_guidance_mask_of_another_shape_raises_both_shapes(mode, shape):
    model = tiny_model(**MODES[mode])
    with pytest.raises(ValueError, match=r"guidance_mask: found shape .*expected \(1, 6\)"):
        logits(model, **row(5), guidance_mask=torch.ones(shape))
    with pytest.raises(ValueError, match=r"guidance_mask: found shape .*expected \(1, 6\)"):
        generate(model, row(5), guidance_mask=torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_guidance_mask_may_have_any_dtype(dtype):
    model = tiny_model(language_guidance_scope="prompt")
    inputs = row(5)
    mask = prompt_mask(inputs, [3])
    expected = logits(model, **inputs, guidance_mask=mask)
    assert torch.equal(logits(model, **inputs, guidance_mask=mask.to(dtype)), expected)


def test_a_prepared_4d_mask_needs_a_guidance_mask():
    model = tiny_model(language_guidance_scope="prompt")
    inputs = row(5)
    causal = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
    with pytest.raises(ValueError, match=r"prepared form.*Pass guidance_mask"):
        logits(model, **inputs, attention_mask=causal)
    mask = prompt_mask(inputs, [3])
    found = logits(model, **inputs, attention_mask=causal, guidance_mask=mask)
    assert differ(found, logits(model, **inputs, guidance_mask=mask)) < NEAR


@pytest.mark.parametrize("change", ["one image too few", "one too many", "half an image"])
def test_images_and_placeholders_must_agree(mode, change):
    model = tiny_model(**MODES[mode])
    inputs = row(3, "image", 2, "image", 4)
    if change == "one image too few":
        inputs["pixel_values"] = inputs["pixel_values"][:1]
    elif change == "one too many":
        inputs["pixel_values"] = torch.cat([inputs["pixel_values"]] * 2)
    else:
        inputs["input_ids"][inputs["input_ids"].eq(IMAGE).nonzero()[0].unbind()] = 5
    with pytest.raises((ValueError, RuntimeError), match="Image features and image tokens"):
        model(**inputs, **marked(model, torch.ones_like(inputs["input_ids"])))


# the classes


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_auto_classes_build_ours(auto_class):
    model = auto_class.from_config(tiny_config())
    expected = HyperLlavaModel if auto_class is AutoModel else HyperLlavaForConditionalGeneration
    assert type(model) is expected


def test_the_headless_model_gives_the_hidden_states_of_the_whole(mode):
    model = tiny_model(**MODES[mode])
    inputs = batch(ROWS)
    mask = marked(model, inputs["attention_mask"])
    with torch.no_grad():
        hidden = model.model(**inputs, **mask).last_hidden_state
        assert torch.equal(model.lm_head(hidden), logits(model, **inputs, **mask))


def test_padding_embeddings_stay_out_of_training():
    model = tiny_model().train()
    inputs = batch(ROWS, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model(**inputs, labels=labels).loss.backward()
    assert not model.get_input_embeddings().weight.grad[PAD].any()
