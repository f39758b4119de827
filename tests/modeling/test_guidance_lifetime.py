"""Guidance of every position is held no longer than an expert needs it."""

import weakref

import pytest
import torch

from tests.modeling.scope_modes import MODES, PAIR, is_prompt
from tests.modeling.tiny_models import batch, prompt_mask, tiny_model


def watch_guidance(model, **call):
    """Say, at each MLP of an expert block, whether the guidance that it was given still lives."""
    seen, alive, hooks = [], [], []
    blocks = model.config.language_expert_blocks
    for n in blocks:
        layer = model.model.language_model.layers[n]
        hooks += [
            layer.language_expert.register_forward_pre_hook(
                lambda module, args: seen.append(weakref.ref(args[1]))
            ),
            layer.mlp.register_forward_hook(lambda *_: alive.append(seen[-1]() is not None)),
        ]
    try:
        model(**call)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == len(alive) == len(blocks)
    return alive


@pytest.mark.parametrize("fields", MODES.values(), ids=MODES)
def test_guidance_is_let_go_before_the_last_mlp_runs(fields):
    model = tiny_model(**fields)
    inputs = batch(PAIR, "right")
    mask = {"guidance_mask": prompt_mask(inputs, [5, 5])} if is_prompt(model) else {}
    with torch.no_grad():
        first, *_, last = watch_guidance(model, **inputs, **mask)
    assert (first, last) == (True, False)
    # With gradients it is needed for the way back.
    assert all(watch_guidance(model, **inputs, **mask))


def test_one_expert_block_is_the_first_and_the_last():
    model = tiny_model(language_expert_layers=[2])
    with torch.no_grad():
        assert watch_guidance(model, **batch([PAIR[0]])) == [False]
