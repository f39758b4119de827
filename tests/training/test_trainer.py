"""What one optimiser step does: its gradient, its groups, its log, and when it is refused."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaProcessor
from hyperllava_hf.data import ConversationCollator, DataSource, open_rows
from hyperllava_hf.training import runs
from hyperllava_hf.training.bad_batches import NonFiniteStepError
from hyperllava_hf.training.model_loading import load_for_training
from hyperllava_hf.training.stages import get_group
from hyperllava_hf.training.step_norms import find_hypernetwork_names
from hyperllava_hf.training.trainer import HyperLlavaTrainer, build_parameter_groups
from tests.training.tiny_runs import build_tiny_settings, write_rows

RATE = 0.1
# Of how far a step moves a tensor, in float32, where sums run in another order.
MOVE_TOLERANCE, ROUNDING = 1e-4, 2e-7
# One step over eight rows: answers of 1 to 15 tokens, with and without images.
STEP_COUNTS = (1, 0, 1, 2, 1, 0, 1, 1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"), STEP_COUNTS)


def build_step_settings(model, rows, **changes):
    """One plain gradient step over all rows, without clipping."""
    values = {
        "optimizer": "sgd",
        "learning_rate": RATE,
        "hypernetwork_learning_rate": None,
        "projector_learning_rate": None,
        "max_grad_norm": 0.0,
        "schedule": "constant",
        "num_epochs": 1.0,
        "global_batch_size": 8,
        "device_batch_size": 8,
    }
    return build_tiny_settings(model, rows, **{**values, **changes})


def train_weights(settings, output):
    report = runs.train(settings, output)
    return load_file(report.model / "model.safetensors"), report


def assert_same_moves(found, expected, start):
    for name, value in expected.items():
        allowed = MOVE_TOLERANCE * (value - start[name]).norm() + ROUNDING * value.numel() ** 0.5
        assert (found[name] - value).norm() <= allowed, name


def get_mean_token_gradient(folder, rows):
    """The gradient of the mean loss over all supervised tokens, row by row, in our own words."""
    model = HyperLlavaForConditionalGeneration.from_pretrained(folder)
    processor = HyperLlavaProcessor.from_pretrained(folder)
    opened = open_rows(
        [DataSource(str(rows))], processor=processor, template="vicuna_v1", max_length=2048
    )
    collate = ConversationCollator(processor, "vicuna_v1", 2048)
    losses, count = [], 0
    for i in range(len(opened)):
        batch = collate([opened[i]])
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1]
        kept = labels[:, 1:] != -100
        scores = torch.log_softmax(logits[kept], -1)
        losses.append(-scores.gather(1, labels[:, 1:][kept][:, None]).sum())
        count += int(kept.sum())
    (sum(losses) / count).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, float(
        sum(losses) / count
    )


@pytest.mark.parametrize("at_once", [8, 2, 1])
def test_a_step_is_the_gradient_of_the_mean_over_tokens(tiny_checkpoint, rows, tmp_path, at_once):
    settings = build_step_settings(tiny_checkpoint, rows, device_batch_size=at_once)
    weights, report = train_weights(settings, tmp_path)
    start = load_file(tiny_checkpoint / "model.safetensors")
    gradients, loss = get_mean_token_gradient(tiny_checkpoint, rows)
    trained = [name for name in start if get_group(name) != "vision_tower"]
    expected = {name: start[name] - RATE * gradients[name] for name in trained}
    assert min((start[name] - expected[name]).norm() for name in trained) > 0
    assert_same_moves(weights, expected, start)
    assert report.losses[0][1] == pytest.approx(loss, abs=1e-4)  # 4.57 rounds to four digits
    for name in set(start) - set(trained):
        assert torch.equal(weights[name], start[name]), name


def test_gradient_checkpointing_gives_the_same_step(tiny_checkpoint, rows, tmp_path):
    settings = build_step_settings(tiny_checkpoint, rows, device_batch_size=4)
    plain, _ = train_weights(settings, tmp_path / "plain")
    changed = dataclasses.replace(settings, gradient_checkpointing=True)
    found, _ = train_weights(changed, tmp_path / "checkpointed")
    assert_same_moves(found, plain, load_file(tiny_checkpoint / "model.safetensors"))


def test_mixed_precision_keeps_small_steps_of_a_bfloat16_model(tiny_checkpoint, rows, tmp_path):
    """A step of 1e-5 is below bfloat16's resolution of most weights: float32 masters keep it."""
    settings = build_step_settings(
        tiny_checkpoint, rows, dtype="bfloat16", optimizer="adamw_torch", learning_rate=1e-5
    )
    model = load_for_training(settings)
    for parameter in model.parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted
    weights, _ = train_weights(settings, tmp_path)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    loaded = HyperLlavaForConditionalGeneration.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    kept = load_file(tmp_path / "checkpoint-1" / "model.safetensors")["lm_head.weight"]
    start = load_file(tiny_checkpoint / "model.safetensors")["lm_head.weight"].bfloat16()
    moved = (kept - start.float()).abs()
    assert kept.dtype == torch.float32
    assert (moved > 5e-6).float().mean() > 0.9
    # A bfloat16 weight would have stayed where it was.
    assert (kept.bfloat16() == start).float().mean() > 0.5


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"mixed_precision": "fp16"}])
def test_float16_arithmetic_without_a_gpu_is_refused_before_a_model_is_loaded(
    change, tiny_checkpoint, rows, monkeypatch
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    settings = build_step_settings(tiny_checkpoint, rows, **change)
    with pytest.raises(ValueError, match=r"float16 arithmetic needs a GPU.*expected float32 or bf"):
        load_for_training(settings)


def test_groups_have_their_own_learning_rates(tiny_checkpoint, rows):
    settings = build_tiny_settings(tiny_checkpoint, rows, weight_decay=0.5)
    model = load_for_training(settings)
    found = {}
    for group in build_parameter_groups(model, settings):
        for parameter in group["params"]:
            assert parameter not in found
            found[parameter] = (group["lr"], group["weight_decay"])
    hypernetworks = find_hypernetwork_names(model)
    assert any("language_expert.heads" in name for name in hypernetworks)
    assert any("visual_expert.hypernetwork.hidden_weight" in name for name in hypernetworks)
    assert not any("encoder" in name for name in hypernetworks)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter not in found
            continue
        rate = 3e-3 if name in hypernetworks else 1e-2
        rate = 1e-3 if get_group(name) == "projector" else rate
        is_matrix = parameter.ndim > 1 and "bias" not in name
        assert found[parameter] == (rate, 0.5 if is_matrix else 0.0), name


def test_log_has_norms_by_group_speed_and_skipped_rows(tiny_checkpoint, rows, tmp_path, capsys):
    written = json.loads(rows.read_text())
    written[2]["image"] = "missing.png"
    bad = rows.with_name("bad.json")
    bad.write_text(json.dumps(written), encoding="utf-8")
    (rows.parent / "broken.png").write_bytes(b"no picture")
    written[3]["image"][1] = "broken.png"
    bad.write_text(json.dumps(written), encoding="utf-8")
    settings = build_step_settings(
        tiny_checkpoint, bad, on_bad_row="skip", max_steps=1, max_grad_norm=1e-3
    )
    report = runs.train(settings, tmp_path)
    assert report.num_bad_rows == 1
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    row = state["log_history"][0]
    groups = ("projector", "visual_expert", "language_expert", "language_model")
    parts = [row[f"grad_norm/{group}"] for group in groups]
    assert min(parts) > 0
    # Before clipping, as the whole norm is.
    assert math.hypot(*parts) == pytest.approx(row["grad_norm"], rel=1e-3)
    hypernetwork = row["grad_norm/hypernetwork"]
    assert (
        0 < hypernetwork < math.hypot(row[f"grad_norm/{groups[1]}"], row[f"grad_norm/{groups[2]}"])
    )
    scale = 1e-3 / row["grad_norm"]
    assert row["update_norm/hypernetwork"] == pytest.approx(RATE * scale * hypernetwork, rel=1e-2)
    assert row["tokens_per_second"] > 0
    assert row["num_skipped_rows"] == 1
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["num_bad_rows"], record["num_skipped_rows"]) == (1, 1)
    assert "skipped 1" in capsys.readouterr().err


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_step_that_is_no_number_stops_before_the_update(
    tiny_checkpoint, rows, tmp_path, monkeypatch, poison
):
    settings = build_tiny_settings(tiny_checkpoint, rows, save_steps=1)
    kept = {}
    original = HyperLlavaTrainer.compute_loss

    def compute_loss(self, model, inputs, **kwargs):
        if self.state.global_step == 1:
            kept.update({n: p.detach().clone() for n, p in self.model.named_parameters()})
            kept["trainer"] = self
            head = self.model.lm_head.weight
            if poison == "loss":
                self.model.lm_head.register_forward_hook(lambda *call: call[2] * float("nan"))
            else:  # a finite loss whose gradient is infinite
                loss = original(self, model, inputs, **kwargs)
                return loss + 0 * head.sum() + (head[0, 0] - head[0, 0].detach()).abs().sqrt()
        return original(self, model, inputs, **kwargs)

    monkeypatch.setattr(HyperLlavaTrainer, "compute_loss", compute_loss)
    with pytest.raises(NonFiniteStepError, match=r"step 2 gave losses .* expected finite numbers"):
        runs.train(settings, tmp_path)
    trainer = kept.pop("trainer")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    folder = tmp_path / "bad-step-2"
    facts = json.loads((folder / "facts-rank0.json").read_text())
    assert facts["step"] == 2
    assert facts["losses"][0] == "nan" if poison == "loss" else facts["grad_norm"] in ("inf", "nan")
    assert [len(numbers) for numbers in facts["row_numbers"]] == [2, 2]
    tensors = load_file(folder / "batches-rank0.safetensors")
    assert tensors["0/input_ids"].shape == tensors["0/labels"].shape
    assert "1/input_ids" in tensors
    assert any(name.endswith("/pixel_values") for name in tensors)
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not (tmp_path / "model").exists()


def test_all_rows_are_seen_once_an_epoch_in_an_order_of_the_seed(
    tiny_checkpoint, rows, tmp_path, monkeypatch
):
    seen = []
    original = HyperLlavaTrainer.get_batch_samples

    def get_batch_samples(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        seen.extend(number for numbers in self._row_numbers for number in numbers.tolist())
        return result

    monkeypatch.setattr(HyperLlavaTrainer, "get_batch_samples", get_batch_samples)
    orders = []
    for grouped, seed in ((False, 0), (False, 0), (False, 1), (True, 0)):
        settings = build_tiny_settings(
            tiny_checkpoint, rows, group_by_modality_length=grouped, seed=seed
        )
        seen.clear()
        runs.train(settings, tmp_path / str(len(orders)))
        orders.append(list(seen))
        assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(set(seen))
        assert seen[:8] != seen[8:]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    without = {2, 6}  # row numbers begin with 1
    pairs = [set(orders[3][i : i + 2]) for i in range(0, 16, 2)]
    assert all(pair == without or not pair & without for pair in pairs)


def test_steps_without_images_move_the_projector_as_zero_gradients_do(
    tiny_checkpoint, rows, tmp_path
):
    """As with several ranks, which encode a blank image: AdamW goes on with its averages."""
    settings = build_tiny_settings(tiny_checkpoint, rows, global_batch_size=2, num_epochs=1.0)
    runs.train(settings, tmp_path)
    state = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    model = load_for_training(settings)
    num_trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert {int(values["step"]) for values in state["state"].values()} == {4}
    assert len(state["state"]) == num_trained


def test_rows_without_images_teach_stage_1_nothing(tiny_checkpoint, tmp_path):
    rows = write_rows(tmp_path / "text", (0, 0))
    settings = build_step_settings(
        tiny_checkpoint,
        rows,
        stage="align",
        language_model="frozen",
        template="vicuna_v1",
        global_batch_size=2,
        device_batch_size=2,
    )
    weights, report = train_weights(settings, tmp_path / "run")
    assert report.num_steps == 1
    for name, value in load_file(tiny_checkpoint / "model.safetensors").items():
        assert torch.equal(weights[name], value), name
