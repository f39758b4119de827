"""PEFT with the real library: LoRA on the decoder, whole projector and experts beside it."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from hyperllava_hf import HyperLlavaForConditionalGeneration, lora_config
from tests.ecosystem.training_steps import build_batches
from tests.modeling.tiny_models import is_expert


@pytest.fixture
def batch(tiny_checkpoint):
    return build_batches(tiny_checkpoint)[0][0]


@pytest.fixture
def base(tiny_checkpoint):
    return HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)


def assert_same(found, expected):
    # The same weights twice differ by 7e-7: the CPU's kernels sum by where a tensor lies in memory.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def read_logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def train_steps(model, batch, num_steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(num_steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def trained(base, batch):
    model = get_peft_model(base, lora_config(r=4, lora_alpha=8, lora_dropout=0.0))
    losses = train_steps(model, batch)
    assert losses[-1] < losses[0]
    return model


def test_recommended_config_adapts_every_linear_layer_of_the_decoder_and_no_other(base):
    config = base.config
    model = get_peft_model(base, lora_config(r=4))
    adapted = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert len(adapted) == 7 * config.text_config.num_hidden_layers
    assert all(".language_model.layers." in name for name in adapted)
    whole = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert all(".modules_to_save.default." in name for name in whole)
    plain = [name.replace("modules_to_save.default.", "") for name in whole]
    plain = {name.removeprefix("base_model.model.") for name in plain}
    fresh = HyperLlavaForConditionalGeneration(config)
    assert plain == {
        name
        for name, _ in fresh.named_parameters()
        if is_expert(name) or "multi_modal_projector." in name
    }


def test_settings_win_over_the_recommended_ones():
    config = lora_config(r=8, modules_to_save=["multi_modal_projector"])
    assert (config.r, config.lora_alpha) == (8, 256)
    assert config.modules_to_save == ["multi_modal_projector"]


def test_untrained_adapter_changes_nothing(base, batch):
    expected = read_logits(base, batch)
    model = get_peft_model(base, lora_config(r=4))
    assert_same(read_logits(model, batch), expected)


def test_training_moves_experts_projector_and_decoder(trained, tiny_checkpoint, batch):
    # With the adapter off, the trained copies are off too: the model is what it was.
    expected = read_logits(
        HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint), batch
    )
    assert not torch.allclose(read_logits(trained, batch), expected, atol=1e-2)
    with trained.disable_adapter():
        assert_same(read_logits(trained, batch), expected)
    merged = copy.deepcopy(trained).merge_and_unload().state_dict()
    start = HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint).state_dict()
    moved = {name for name in start if not torch.equal(merged[name], start[name])}
    assert {name for name in start if is_expert(name)} <= moved
    assert {name for name in moved if "vision_tower." in name or "lm_head" in name} == set()


def test_saved_adapter_reloads_equal(trained, tiny_checkpoint, batch, tmp_path):
    expected = read_logits(trained, batch)
    trained.save_pretrained(tmp_path)
    base = HyperLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    reloaded = PeftModel.from_pretrained(base, tmp_path)
    assert_same(read_logits(reloaded, batch), expected)
    kept, state = trained.state_dict(), reloaded.state_dict()
    assert [name for name in kept if not torch.equal(state[name], kept[name])] == []


def test_merged_model_saves_as_a_checkpoint_like_any_other(trained, batch, tmp_path):
    expected = read_logits(trained, batch)
    merged = trained.merge_and_unload()
    assert type(merged).__name__ == "HyperLlavaForConditionalGeneration"
    # Adding W and BA rounds once more.
    torch.testing.assert_close(read_logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    reloaded = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(read_logits(reloaded, batch), read_logits(merged, batch))
    kept, state = merged.state_dict(), reloaded.state_dict()
    assert state.keys() == type(merged)(merged.config).state_dict().keys()
    assert [name for name in state if not torch.equal(state[name], kept[name])] == []


def test_adapter_generates_like_the_merged_model(trained, batch):
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    options = {"max_new_tokens": 6, "do_sample": False}
    adapted = trained.eval().generate(**prompt, **options)
    assert torch.equal(trained.merge_and_unload().generate(**prompt, **options), adapted)


def test_experts_can_be_switched_off_under_an_adapter(trained, batch):
    expected = read_logits(trained, batch)
    with trained.base_model.model.disable_experts():
        assert not torch.allclose(read_logits(trained, batch), expected, atol=1e-3)
    assert_same(read_logits(trained, batch), expected)
