"""The paper's ablations as configurations: each builds, trains, and round-trips bitwise."""

import pytest
import torch

from hyperllava_hf import HyperLlavaForConditionalGeneration
from tests.modeling.tiny_models import ROWS, batch, is_expert, prompt_mask, quiet_model

ABLATIONS = {
    **{f"Table 2, {place}": {"visual_expert": place} for place in ("first", "second", "both")},
    "Table 2, language only": {"visual_expert": "none"},
    "Table 2, vision only": {"language_expert_layers": "none"},
    **{
        f"Table 3, {blocks}": {"language_expert_layers": blocks}
        for blocks in ("posterior", "anterior", "all", [0, 3], [3])
    },
    **{f"Fig. 3, block {k}": {"language_guidance_layer": k} for k in (1, 2, 3)},
    **{f"Fig. 4, m {m}": {"expert_input_dim": m} for m in (1, 8, 64)},
    **{f"Fig. 4, r {r}": {"expert_hidden_dim": r} for r in (1, 4, 16)},
    **{
        f"Table 5, {source}": {"expert_source": source, "visual_expert": "both"}
        for source in ("guided", "latent", "static")
    },
}
SCOPES = {
    "token": {},
    "prompt": {"language_guidance_scope": "prompt"},
}


def training_batch():
    inputs = batch(ROWS, "right")
    hidden = prompt_mask(inputs, [6, 2, 12, 3]).bool() | (inputs["attention_mask"] == 0)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(hidden, -100)}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_every_expert_parameter_and_round_trips(tmp_path, name, scope):
    model = quiet_model(**SCOPES[scope], **ABLATIONS[name]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    experts = {n: p for n, p in model.named_parameters() if is_expert(n)}
    assert experts
    for _ in range(2):
        optimizer.zero_grad()
        model(**training_batch()).loss.backward()
        optimizer.step()
    # The gradient of the second step: by then nothing is zero that the rest is multiplied by.
    without = [n for n, p in experts.items() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.isfinite().all() for p in experts.values())

    model.save_pretrained(tmp_path)
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    saved = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[n], saved[n]) for n in saved)


@pytest.mark.parametrize("name", ["Table 2, first", "Table 5, latent", "Table 5, static"])
def test_training_without_the_decoder_moves_the_experts_alone(name):
    """Table 6: parameter-efficient, the language model stays as it is."""
    model = quiet_model(**ABLATIONS[name]).train()
    trained = {}
    for parameter_name, parameter in model.named_parameters():
        trained[parameter_name] = is_expert(parameter_name)
        parameter.requires_grad_(trained[parameter_name])
    before = {n: v.clone() for n, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**training_batch()).loss.backward()
        optimizer.step()
    for parameter_name, value in model.state_dict().items():
        moved = not torch.equal(value, before[parameter_name])
        assert moved == trained[parameter_name], parameter_name
