"""Experts against Eq. 3-7 derived once more in float64, and the rules of initialisation."""

import math

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from hyperllava_hf.modeling.experts_hyperllava import Expert, HyperNetwork, apply_expert
from tests.modeling.reference_model import Reference
from tests.modeling.tiny_models import (
    NUM_PATCHES,
    ROWS,
    VISION,
    as_llava,
    batch,
    is_expert,
    logits,
    prompt_mask,
    quiet_model,
    row,
    tiny_model,
)

# Sums of tens of terms in fp32 over four blocks, values of order 1-10: a few hundred eps.
FP32 = 2e-4

# language_expert_layers, language_guidance_layer -> (expert blocks, hidden state that guides)
PLACEMENTS = {
    "posterior": ({}, ([2, 3], 2)),
    "anterior": ({"language_expert_layers": "anterior"}, ([0, 1], 0)),
    "all": ({"language_expert_layers": "all"}, ([0, 1, 2, 3], 0)),
    "none": ({"language_expert_layers": "none"}, ([], None)),
    "list above k": (
        {"language_expert_layers": [3, 1], "language_guidance_layer": 1},
        ([1, 3], 1),
    ),
    "list below k": (
        {"language_expert_layers": [1, 3], "language_guidance_layer": 2},
        ([1, 3], 0),
    ),
    "posterior above the middle": ({"language_guidance_layer": 3}, ([3], 3)),
    "posterior from 1": ({"language_guidance_layer": 1}, ([2, 3], 1)),
}


def features_of(model, pixel_values):
    """f_V as transformers' own tower gives it: penultimate layer, CLS dropped."""
    if pixel_values is None:
        return None
    with torch.no_grad():
        states = as_llava(model).model.vision_tower(pixel_values, output_hidden_states=True)
    return states.hidden_states[-2][:, 1:]


def check(model, inputs, experts, guide_at, prompt=None):
    keywords = {} if prompt is None else {"guidance_mask": prompt}
    found = logits(model, **inputs, **keywords)
    expected = Reference(model).logits(
        inputs["input_ids"],
        features_of(model, inputs.get("pixel_values")),
        inputs["attention_mask"],
        prompt,
        experts=experts,
        guide_at=guide_at,
    )
    attended = inputs["attention_mask"].bool()
    scale = expected[attended].abs().max()
    error = (found.double() - expected)[attended].abs().max() / scale
    assert error < FP32
    return expected


@pytest.mark.parametrize("source", ["guided", "latent", "static"])
@pytest.mark.parametrize("scope", ["token", "prompt"])
@pytest.mark.parametrize("visual", ["first", "second", "both", "none"])
def test_the_model_is_the_papers_equations(scope, source, visual):
    model = tiny_model(language_guidance_scope=scope, expert_source=source, visual_expert=visual)
    check(model, batch(ROWS, "right"), [2, 3], 2 if source == "guided" else None)


@pytest.mark.parametrize("scope", ["token", "prompt"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_experts_sit_and_are_guided_where_the_configuration_says(scope, name):
    fields, (experts, guide_at) = PLACEMENTS[name]
    model = tiny_model(language_guidance_scope=scope, **fields)
    check(model, batch(ROWS, "right"), experts, guide_at)


@pytest.mark.parametrize(
    "fields", [{}, {"language_expert_layers": "all"}], ids=["at k", "embeddings"]
)
@pytest.mark.parametrize("pooling", ["mean", "text", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_is_over_the_prompt(pooling, fields, side):
    model = tiny_model(
        language_guidance_scope="prompt", language_guidance_pooling=pooling, **fields
    )
    inputs = batch(ROWS, side)
    experts, guide_at = ([0, 1, 2, 3], 0) if fields else ([2, 3], 2)
    whole = check(model, inputs, experts, guide_at)
    # A mask may end on an image, hold images alone (row 2) and be as short as one position.
    partial = check(model, inputs, experts, guide_at, prompt_mask(inputs, [7, 1, 5, 4]))
    assert (whole - partial).abs().max() > 0.01


def test_two_experts_of_one_shape_share_their_head():
    model = tiny_model(visual_expert="both", vision_config={**VISION, "hidden_size": 16})
    heads = {
        name for name, _ in model.named_parameters() if "visual_expert.hypernetwork.heads.1" in name
    }
    assert not heads
    features = torch.randn(2, NUM_PATCHES, 16)
    with torch.no_grad():
        found = model.model.multi_modal_projector(features)
    expected = Reference(model).project(features)
    error = (found.flatten(0, 1) - expected).abs().max()
    assert error < FP32 * expected.abs().max()


def test_an_image_has_its_own_visual_expert_whatever_stands_beside_it():
    model = tiny_model(visual_expert="both")
    features = torch.randn(3, NUM_PATCHES, 12)
    with torch.no_grad():
        together = model.model.multi_modal_projector(features)
        alone = [model.model.multi_modal_projector(image[None])[0] for image in features]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=1e-5)


# units


def make_expert(source="guided", width=16, code_dim=5, hidden_dim=3, output_dim=None):
    output_dim = width if output_dim is None else output_dim
    hypernetwork = HyperNetwork([(width, output_dim)], code_dim, hidden_dim)
    expert = Expert(source, width, width, output_dim, code_dim, hidden_dim)
    for module in (hypernetwork, hypernetwork.heads[0], expert):
        module.init_weights()
    return expert, hypernetwork


@pytest.mark.parametrize("output_dim", [16, 7])
def test_factors_of_a_position_equal_its_weights_made_in_full(output_dim):
    expert, hypernetwork = make_expert(output_dim=output_dim)
    for parameter in (*expert.parameters(), *hypernetwork.parameters()):
        torch.nn.init.normal_(parameter, std=0.4)
    guidance, x = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    factored = apply_expert(x, *expert(x.dtype, guidance, *hypernetwork()))
    for b in range(2):
        for t in range(6):
            full = expert(x.dtype, guidance[b, t : t + 1], *hypernetwork())
            assert full[0].shape == (1, 6, 16)
            assert full[1].shape == (1, 3, output_dim)
            alone = apply_expert(x[b : b + 1, t : t + 1], *full)
            torch.testing.assert_close(factored[b, t], alone[0, 0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_position_compiled_is_as_exact_as_eager_code(dtype):
    torch._dynamo.reset()
    update, x = torch.randn(2, 3, 1, 48).to(dtype)
    weights = torch.randn(3, 10, 48).to(dtype), torch.randn(3, 5, 48).to(dtype)
    compiled = torch.compile(apply_expert, backend="eager", fullgraph=True)
    exact = apply_expert(x.double(), *(w.double() for w in weights), update=update.double())
    eager = apply_expert(x, *weights, update=update)
    found = compiled(x, *weights, update=update)
    assert found.dtype == dtype
    error, bound = ((t.double() - exact).norm() / exact.norm() for t in (found, eager))
    assert error <= 2 * bound + 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_made_in_pieces_are_those_made_at_once(dtype, monkeypatch):
    expert, hypernetwork = make_expert(width=32, code_dim=7, hidden_dim=5)
    for parameter in (*expert.parameters(), *hypernetwork.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    expert, hypernetwork = expert.to(dtype), hypernetwork.to(dtype)
    guidance = torch.randn(3, 32)
    with torch.no_grad():
        whole = expert(dtype, guidance, *hypernetwork())
        monkeypatch.setattr("hyperllava_hf.modeling.experts_hyperllava.PIECE", 3 * 7 * 32)
        pieces = expert(dtype, guidance, *hypernetwork())
    for piece, expected in zip(pieces, whole, strict=True):
        assert piece.is_contiguous()
        torch.testing.assert_close(piece, expected, atol=0, rtol=torch.finfo(dtype).eps)


def test_weights_of_a_position_are_never_made_in_full():
    expert, hypernetwork = make_expert()
    weights = expert(torch.float32, torch.randn(2, 7, 16), *hypernetwork())
    code, *shared = weights
    assert code.shape == (2, 7, 5)
    assert all(7 not in weight.shape for weight in shared)


@pytest.mark.parametrize("width", [32, 128, 1024, 4096])
def test_the_bottlenecks_rms_is_near_one_at_every_width(width):
    expert, hypernetwork = make_expert(width=width, code_dim=64, hidden_dim=16)
    guidance, x = torch.randn(8, width), torch.randn(8, 16, width)
    down, up = expert(torch.float32, guidance, *hypernetwork())
    rms = (x @ down.mT).pow(2).mean().sqrt()
    assert 0.5 < rms < 2
    assert not up.any()


@pytest.mark.parametrize("source", ["latent", "static"])
def test_unguided_bottlenecks_have_the_same_scale(source):
    expert, hypernetwork = make_expert(source, width=256, code_dim=64, hidden_dim=16)
    shared = () if source == "static" else hypernetwork()
    down, up = expert(torch.float32, None, *shared)
    rms = (torch.randn(50, 256) @ down.mT).pow(2).mean().sqrt()
    assert 0.5 < rms < 2
    assert not up.any()


def test_fresh_parameters_are_zero_or_have_fan_in_scale():
    fields = {"expert_input_dim": 48, "expert_hidden_dim": 16, "visual_expert": "both"}
    model = quiet_model(language_expert_layers="all", **fields)
    seen = set()
    for name, parameter in model.named_parameters():
        if not is_expert(name):
            continue
        kind = name.rsplit(".", 1)[1]
        seen.add(kind)
        if kind in ("encoder_weight", "hidden_weight"):
            std = parameter.shape[1] ** -0.5
        elif kind == "weight_down":
            std = (parameter.shape[0] * parameter.shape[2]) ** -0.5
        else:
            assert not parameter.any(), name
            continue
        # The sample's own spread: four standard errors.
        assert abs(parameter.std() / std - 1) < 4 / math.sqrt(2 * parameter.numel()), name
        assert abs(parameter.mean()) < 4 * std / math.sqrt(parameter.numel()), name
    assert {"encoder_weight", "hidden_weight", "weight_down", "weight_up", "bias_up"} <= seen


def train_steps(model, steps, **inputs):
    """Gradients of each of several SGD steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"].clone()).loss.backward()
        history.append(
            {n: p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters()}
        )
        optimizer.step()
    return history


@pytest.mark.parametrize("source", ["guided", "latent", "static"])
def test_at_step_0_only_what_makes_the_up_projection_has_gradient(source):
    model = quiet_model(
        visual_expert="both", language_expert_layers="all", expert_source=source
    ).train()
    first, _, third = train_steps(model, 3, **batch(ROWS, "right"))
    for name in filter(is_expert, first):
        assert first[name] == name.endswith(("weight_up", "bias_up")), name
        assert third[name], name


def test_a_fresh_model_is_llava_but_its_experts_would_move_it():
    quiet = quiet_model()
    llava = as_llava(quiet)
    assert type(llava) is LlavaForConditionalGeneration
    inputs = {**row(3, "image", 4)}
    assert torch.equal(logits(quiet, **inputs), logits(llava, **inputs))
    assert (logits(tiny_model(), **inputs) - logits(llava, **inputs)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_generated_weights_are_accumulated_in_fp32_and_kept_in_the_activations_dtype(dtype):
    expert, hypernetwork = make_expert(width=64, code_dim=64)
    for parameter in (*expert.parameters(), *hypernetwork.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    guidance = torch.randn(2, 64)
    exact = expert(torch.float32, guidance, *hypernetwork())
    expert, hypernetwork = expert.to(dtype), hypernetwork.to(dtype)
    rounded = expert(dtype, guidance, *hypernetwork())
    assert all(weight.dtype == dtype for weight in rounded)
    for weight, expected in zip(rounded, exact, strict=True):
        scale = expected.abs().max()
        # Rounding of parameters and of the result; a sum in low precision is some ten times worse.
        assert (weight.float() - expected).abs().max() / scale < 2 * torch.finfo(dtype).eps
