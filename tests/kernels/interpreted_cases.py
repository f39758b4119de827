"""Cases of test_fused_expert.py, run where Triton interprets its kernels, or on a GPU.

Error model: eager code rounds the result of each of its steps to the dtype; the kernels sum in fp32
and round h once and the result once. So in bf16 and fp16 they err no more than eager code but for
the luck of single roundings: twice its error is the bound. In fp32 both err by a few roundings of
sums whose order differs: 32 of those are allowed besides. A wrong index or factor errs a thousand
times more.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperllava_hf.kernels import fused_expert, set_expert_impl
from hyperllava_hf.kernels.fused_expert import MOST_POSITIONS, FusedExpert, apply_fused_expert
from hyperllava_hf.modeling.experts_hyperllava import apply_expert
from tests.modeling.tiny_models import ROWS, batch, differ, logits, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FP32_ROUNDINGS = 32 * torch.finfo(torch.float32).eps / 2
NAMES = ("result", "x", "down", "up", "update")
# B, L, D_in, R, D_out: one of each; slices of D; two tiles of L, of 2R and of R.
SIZES = [(1, 1, 1, 1, 1), (1, 1, 700, 16, 130), (2, 67, 33, 5, 20), (1, 3, 40, 37, 29)]


def draw(sizes, is_shared, dtype, seed=0):
    """x, W_d, W_u, update and the gradient of the result."""
    samples, length, width, rank, out = sizes
    generator = torch.Generator().manual_seed(seed)
    own = () if is_shared else (samples,)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    drawn = (
        normal(samples, length, width),
        normal(*own, 2 * rank, width) * width**-0.5,
        normal(*own, rank, out) * rank**-0.5,
        normal(samples, length, out),
        normal(samples, length, out),
    )
    return [tensor.to(DEVICE, dtype) for tensor in drawn]


def differentiate(function, drawn, dtype=None):
    """The result and the gradients of x, W_d, W_u and the update."""
    *inputs, gradient = [tensor.to(dtype or tensor.dtype) for tensor in drawn]
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    x, down, up, update = inputs
    result = function(x, down, up, update=update)
    result.backward(gradient)
    return [result.detach(), *(tensor.grad for tensor in inputs)]


def error_of(found, exact):
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def check(drawn):
    exact = differentiate(apply_expert, drawn, torch.float64)
    eager = differentiate(apply_expert, drawn)
    fused = differentiate(apply_fused_expert, drawn)
    for name, mine, plain, truth in zip(NAMES, fused, eager, exact, strict=True):
        assert mine.dtype == plain.dtype
        assert mine.shape == plain.shape
        bound = 2 * error_of(plain, truth) + FP32_ROUNDINGS
        assert error_of(mine, truth) <= bound, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward_and_backward_are_the_eager_codes(sizes, is_shared, dtype):
    check(draw(sizes, is_shared, dtype))


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (3, 19, 70, 19, 70))),
    is_shared=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_sizes_of_every_kind_are_the_eager_codes(sizes, is_shared, dtype, seed):
    check(draw(sizes, is_shared, dtype, seed))


def test_tensors_of_any_strides_are_read_rightly():
    x, down, up, update, _ = draw((2, 9, 24, 3, 24), False, torch.float32)
    turned = [
        x.mT.contiguous().mT,
        torch.cat([down, down], 1)[:, :6],
        up.transpose(0, 1).contiguous().transpose(0, 1),
        update.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    expected = apply_fused_expert(x, down, up, update=update)
    found = apply_fused_expert(turned[0], turned[1], turned[2], update=turned[3])
    assert torch.equal(found, expected)
    # A sum's gradient is one number, seen everywhere.
    x.requires_grad_()
    (first,) = torch.autograd.grad(apply_fused_expert(x, down, up, update=update).sum(), x)
    (second,) = torch.autograd.grad(apply_expert(x, down, up, update=update).sum(), x)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("needed", range(4))
def test_only_the_gradients_that_are_needed_are_made(needed):
    *inputs, gradient = draw((2, 5, 12, 3, 12), False, torch.float32)
    inputs[needed].requires_grad_()
    x, down, up, update = inputs
    apply_fused_expert(x, down, up, update=update).backward(gradient)
    assert [tensor.grad is not None for tensor in inputs] == [n == needed for n in range(4)]


def test_the_gradient_of_the_gradient_is_refused():
    x, down, up, update, _ = draw((1, 2, 8, 2, 8), False, torch.float32)
    x.requires_grad_()
    result = FusedExpert.apply(x, down, up, update)
    (first,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fresh_expert_leaves_every_bit(dtype):
    x, down, up, update, _ = draw((2, 5, 33, 4, 33), False, dtype)
    assert torch.equal(apply_fused_expert(x, down, 0 * up, update=update), update)


def test_without_an_update_it_is_the_expert_alone():
    x, down, up, update, _ = draw((2, 5, 33, 4, 33), False, torch.float32)
    alone = apply_fused_expert(x, down, up)
    torch.testing.assert_close(alone + update, apply_fused_expert(x, down, up, update=update))


def test_autocast_decides_the_dtype_as_for_eager_code():
    x, down, up, update, _ = draw((2, 5, 32, 4, 32), False, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = apply_fused_expert(x, down, up, update=update)
        expected = apply_expert(x, down, up, update=update)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_a_dtype_without_kernels_is_named():
    drawn = draw((1, 2, 8, 2, 8), False, torch.float64)
    with pytest.raises(ValueError, match=r"found activations of torch.float64, expected float32"):
        apply_fused_expert(*drawn[:3])


# factors of scope "token", while decoding


def draw_factors(sizes, num_code, dtype, seed=0):
    """x, the code, W2_d, its bias, W2_u, its bias, and the update."""
    samples, length, width, rank, out = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (samples, length, width),
        (samples, length, num_code),
        (num_code, 2 * rank, width),
        (2 * rank, width),
        (num_code, rank, out),
        (rank, out),
        (samples, length, out),
    )
    scales = (1, 1, (num_code * width) ** -0.5, width**-0.5, (num_code * rank) ** -0.5, 0.3, 1)
    drawn = [
        scale * torch.randn(shape, generator=generator)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    return [tensor.to(DEVICE, dtype) for tensor in drawn]


def refuse(*arguments, **keywords):
    raise AssertionError("the eager code was called")


@torch.no_grad()
def check_factors(*drawing):
    *weights, update = draw_factors(*drawing)
    exact = apply_expert(*(t.double() for t in weights), update=update.double())
    eager = apply_expert(*weights, update=update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_expert, "apply_expert", refuse)
        fused = apply_fused_expert(*weights, update=update)
        alone = apply_fused_expert(*weights)
    assert (fused.dtype, fused.shape) == (eager.dtype, eager.shape)
    # c_k h_r and the result are rounded once each; over many numbers, that is below eager's error.
    luck = FP32_ROUNDINGS + (torch.finfo(eager.dtype).eps if exact.numel() < 32 else 0)
    assert error_of(fused, exact) <= 2 * error_of(eager, exact) + luck
    expert = exact - update.double()
    assert error_of(alone, expert) <= 2 * error_of(apply_expert(*weights), expert) + luck


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_code", [1, 5, 70])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1), (8, 1, 700, 16, 130), (3, 7, 40, 5, 29)], ids=str
)
def test_factors_of_decoded_tokens_are_the_eager_codes(sizes, num_code, dtype):
    check_factors(sizes, num_code, dtype)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (4, 16, 70, 19, 70))),
    num_code=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_factors_of_every_size_are_the_eager_codes(sizes, num_code, dtype, seed):
    check_factors(sizes, num_code, dtype, seed)


def test_factors_with_gradients_or_of_long_prompts_stay_with_the_eager_code():
    *weights, update = draw_factors((1, 3, 8, 2, 8), 4, torch.float32)
    weights[1].requires_grad_()
    expected = apply_expert(*weights, update=update)
    assert torch.equal(apply_fused_expert(*weights, update=update), expected)
    expected.sum().backward()
    assert weights[1].grad.abs().max() > 0
    *weights, update = draw_factors((1, MOST_POSITIONS + 1, 8, 2, 8), 4, torch.float32)
    with torch.no_grad():
        found = apply_fused_expert(*weights, update=update)
        assert torch.equal(found, apply_expert(*weights, update=update))


# a model


@pytest.fixture(params=["token", "prompt"])
def model(request):
    return tiny_model(visual_expert="both", language_guidance_scope=request.param).to(DEVICE)


def inputs_for(model):
    inputs = {name: value.to(DEVICE) for name, value in batch(ROWS).items()}
    if model.model.guides_whole_samples:
        inputs["guidance_mask"] = inputs["attention_mask"]
    return inputs


def test_a_model_answers_as_with_eager_code_and_is_undone(model):
    inputs = inputs_for(model)
    expected = logits(model, **inputs)
    state = copy.deepcopy(model.state_dict())
    set_expert_impl(model, "triton")
    assert (model.expert_impl, model.model.expert_impl) == ("triton", "triton")
    found = logits(model, **inputs)
    assert 0 < differ(found, expected) < 1e-3
    assert differ(logits(copy.deepcopy(model), **inputs), found) == 0
    set_expert_impl(model, "eager")
    assert model.expert_impl == "eager"
    assert torch.equal(logits(model, **inputs), expected)
    assert state.keys() == model.state_dict().keys()


def test_a_model_of_scope_token_decodes_by_the_kernels(monkeypatch):
    model = tiny_model().to(DEVICE)
    inputs = {name: value.to(DEVICE) for name, value in batch(ROWS).items()}
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **options)
    mixed = []
    mix = fused_expert.mix_factors
    monkeypatch.setattr(
        fused_expert, "mix_factors", lambda y, code: mixed.append(code.shape[0]) or mix(y, code)
    )
    set_expert_impl(model, "triton")
    assert torch.equal(model.generate(**inputs, **options), expected)
    num_blocks = len(model.config.language_expert_blocks)
    assert mixed.count(len(ROWS)) >= 3 * num_blocks


def test_a_model_decodes_with_the_weights_that_the_cache_carries():
    model = tiny_model(language_guidance_scope="prompt").to(DEVICE)
    inputs = {name: value.to(DEVICE) for name, value in batch(ROWS).items()}
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **options)
    set_expert_impl(model, "triton")
    assert torch.equal(model.generate(**inputs, **options), expected)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_a_model_has_the_gradients_of_eager_code(model, use_reentrant):
    inputs = inputs_for(model)
    kept = inputs["attention_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~kept, -100)

    def gradients():
        model.zero_grad()
        model.train()
        model(**inputs, labels=labels).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    set_expert_impl(model, "triton")
    if use_reentrant is not None:
        keywords = {"use_reentrant": use_reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
    for name, found in gradients().items():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=2e-3, msg=name)
