"""Gradients of everything that training moves, against finite differences in float64.

The model is run in float64 throughout: where it and transformers compute in fp32 on purpose, the
test puts float64 in its place. A tensor's gradient is compared along a random direction, for which
the central difference of a smooth loss is exact to about 1e-8 at this step.
"""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaProcessor
from hyperllava_hf.checkpoints import get_bundled_checkpoint
from hyperllava_hf.training.hyperllava_stages import build_image_collator
from hyperllava_hf.training.stages import get_group, set_trainable
from tests.tiny_checkpoint import save_tiny_checkpoint

STEP = 1e-4
# Error of a central difference: STEP**2 for the third derivative, 1e-16 / STEP for rounding.
BOUND = 1e-5
QUESTIONS = ("What?", "Which colour is it?")
ANSWERS = ("red", "ab c")

MODELS = {
    "token": {},
    "token, from embeddings": {"language_expert_layers": "all", "visual_expert": "both"},
    "prompt, mean": {"language_guidance_scope": "prompt", "visual_expert": "second"},
    "prompt, text": {"language_guidance_scope": "prompt", "language_guidance_pooling": "text"},
    "prompt, last": {"language_guidance_scope": "prompt", "language_guidance_pooling": "last"},
    "latent": {"expert_source": "latent", "visual_expert": "both"},
    "static": {"expert_source": "static", "visual_expert": "both"},
}


def compute_norm_exactly(self, hidden_states):
    mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)


@pytest.fixture
def exact(monkeypatch):
    """Let `.float()` and Llama's norm, which cast to fp32, compute in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(LlamaRMSNorm, "forward", compute_norm_exactly)


def build_batch(folder):
    """Two rows of different lengths, one of two images and one of one."""
    processor = HyperLlavaProcessor.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    chats = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        pictures = torch.randint(0, 256, (2 - number, 28, 28, 3), generator=generator).byte()
        content = [{"type": "image", "image": picture.numpy()} for picture in pictures]
        content.append({"type": "text", "text": question})
        chats.append(
            [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        )
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_labels=True,
        padding=True,
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_trained_tensor_has_the_gradient_of_its_finite_difference(tmp_path, exact, name):
    folder = save_tiny_checkpoint(tmp_path, **MODELS[name])
    model = HyperLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    set_trainable(model, "instruct")
    batch = dict(build_batch(folder))
    batch["pixel_values"] = batch["pixel_values"].double()

    def compute_loss():
        return model(**batch, use_cache=False).loss

    loss = compute_loss()
    assert loss.dtype == torch.float64
    loss.backward()
    generator = torch.Generator().manual_seed(2)
    groups = set()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
            continue
        groups.add(get_group(key))
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        predicted = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            parameter += STEP * direction
            above = compute_loss()
            parameter -= 2 * STEP * direction
            below = compute_loss()
            parameter += STEP * direction
        measured = ((above - below) / (2 * STEP)).item()
        scale = parameter.grad.norm().item()
        assert scale > 0, key
        assert abs(measured - predicted) <= BOUND * scale + 1e-10, key
    assert groups == {"projector", "visual_expert", "language_expert", "language_model"}


def compute_gradients(model, batch, dtype):
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(**batch, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_mixed_precision_gives_experts_gradients_as_good_as_llavas_own(scope):
    """In bf16 autocast, on trained weights; the yardstick is LLaVA's gradients, experts off."""
    folder = get_bundled_checkpoint()
    model = HyperLlavaForConditionalGeneration.from_pretrained(
        folder, language_guidance_scope=scope
    )
    set_trainable(model, "instruct")
    collate = build_image_collator(HyperLlavaProcessor.from_pretrained(folder), "instruct", 3)
    batch = collate([5, 6, 7])
    found = compare_precisions(model, batch)
    with model.disable_experts():
        yardstick = max(compare_precisions(model, batch)["language_model"])
    assert 0.01 < yardstick < 0.1  # it did round, and not to nonsense
    assert set(found) == {"projector", "visual_expert", "language_expert", "language_model"}
    for group, errors in found.items():
        assert max(errors) <= yardstick, group


def compare_precisions(model, batch):
    """Relative error of each tensor's gradient in bf16 autocast, by group."""
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            model(**batch, use_cache=False).loss.backward()
        parameters = model.named_parameters()
        gradients[dtype] = {n: p.grad.clone() for n, p in parameters if p.grad is not None}
    errors: dict[str, list[float]] = {}
    for name, exact in gradients[torch.float32].items():
        if exact.any():
            error = (gradients[torch.bfloat16][name] - exact).norm() / exact.norm()
            errors.setdefault(get_group(name), []).append(error.item())
    return errors
