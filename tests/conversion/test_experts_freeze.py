"""Frozen experts are the mean, over data, of what a model generates."""

import json

import pytest
import torch
from PIL import Image

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaProcessor
from hyperllava_hf.cli import main
from hyperllava_hf.conversion.experts_freeze import freeze_experts, measure_mean_experts
from hyperllava_hf.data import ConversationCollator, DataSource, open_rows
from tests.tiny_checkpoint import save_tiny_checkpoint

QUESTIONS = ("What is it?", "Which colour?", "How many?")


def load(folder):
    return HyperLlavaForConditionalGeneration.from_pretrained(folder).eval()


def build_batches(folder, sizes=(2, 1)):
    """Batches of conversations about one image each, padded on the left and of several lengths."""
    processor = HyperLlavaProcessor.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        chats = []
        for number in range(size):
            picture = torch.randint(0, 256, (28, 28, 3), generator=generator).byte().numpy()
            content = [
                {"type": "image", "image": picture},
                {"type": "text", "text": QUESTIONS[number]},
            ]
            chats.append(
                [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
            )
        batches.append(
            processor.apply_chat_template(
                chats, tokenize=True, return_dict=True, return_tensors="pt", padding=True
            )
        )
    return batches


@pytest.mark.parametrize("scope", ["token", "prompt"])
@pytest.mark.parametrize("visual", ["first", "both"])
def test_frozen_weights_are_the_mean_of_the_generated_ones(tmp_path, scope, visual):
    folder = save_tiny_checkpoint(tmp_path, language_guidance_scope=scope, visual_expert=visual)
    model, batches = load(folder), build_batches(folder)
    down, up, num_images = {}, {}, 0
    language: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for batch in batches:
        length = batch["input_ids"].shape[1]
        for position in range(length) if scope == "token" else [-1]:
            weights = model.expert_weights(position=position, **batch)
            attended = batch["attention_mask"][:, position].bool()
            for block, (w_d, w_u) in weights["language"].items():
                rows = attended if scope == "token" else slice(None)
                pairs = zip(w_d[rows], w_u[rows], strict=True)
                language.setdefault(block, []).extend(pairs)
        for site, (w_d, w_u) in weights["visual"].items():
            down[site] = down.get(site, 0) + w_d.double().sum(0)
            up[site] = up.get(site, 0) + w_u.double().sum(0)
        num_images += len(batch["pixel_values"])
    found = measure_mean_experts(model, batches)
    expected = {}
    for site in down:
        name = f"model.multi_modal_projector.visual_expert.{site}"
        expected[f"{name}.bias_down"] = down[site] / num_images
        expected[f"{name}.bias_up"] = up[site].mT / num_images
    for block, pairs in language.items():
        name = f"model.language_model.layers.{block}.language_expert"
        expected[f"{name}.bias_down"] = torch.stack([w for w, _ in pairs]).double().mean(0)
        expected[f"{name}.bias_up"] = torch.stack([w for _, w in pairs]).double().mean(0).mT
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6)


def test_a_latent_model_frozen_answers_as_before(tmp_path):
    folder = save_tiny_checkpoint(tmp_path, expert_source="latent")
    model, (batch,) = load(folder), build_batches(folder, sizes=(2,))
    frozen = freeze_experts(model, [batch])
    assert frozen.config.expert_source == "static"
    assert model.config.expert_source == "latent"
    torch.testing.assert_close(frozen(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_a_frozen_model_is_saved_and_loaded_as_a_static_one(tmp_path, scope):
    folder = save_tiny_checkpoint(tmp_path / "own", language_guidance_scope=scope)
    (batch,) = build_batches(folder, sizes=(1,))
    model = load(folder)
    frozen = freeze_experts(model, [batch])
    # Over this one sample its mean prompt guidance is its own: nothing is lost on it.
    if scope == "prompt":
        torch.testing.assert_close(frozen(**batch).logits, model(**batch).logits)
    else:
        assert (frozen(**batch).logits - model(**batch).logits).abs().max() > 1e-4
    frozen.save_pretrained(tmp_path / "frozen")
    again = load(tmp_path / "frozen")
    assert torch.equal(again(**batch).logits, frozen(**batch).logits)
    generating = ("encoder_weight", "hidden_weight", "weight_up")
    assert not any(name.endswith(generating) for name in again.state_dict())


def test_what_cannot_be_frozen_is_said(tmp_path):
    static = load(save_tiny_checkpoint(tmp_path / "static", expert_source="static"))
    with pytest.raises(ValueError, match="nothing to freeze"):
        measure_mean_experts(static, [])
    folder = save_tiny_checkpoint(tmp_path / "guided")
    model = load(folder)
    with pytest.raises(ValueError, match=r"no guidance for .* \(of \d+ experts\) in the data"):
        measure_mean_experts(model, [])
    text = HyperLlavaProcessor.from_pretrained(folder)(text="hello", return_tensors="pt")
    with pytest.raises(ValueError, match=r"visual_expert\.first .* rows with images"):
        measure_mean_experts(model, [text])


@pytest.fixture
def data(tmp_path):
    """Five rows of LLaVA data, one of them without an image."""
    rows = []
    for number in range(5):
        Image.new("RGB", (20, 30), (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
        mark = "<image>\n" if number != 2 else ""
        turns = [("human", f"{mark}What is {number}?"), ("gpt", "a" * (number + 1))]
        row = {"id": str(number), "conversations": [{"from": f, "value": v} for f, v in turns]}
        rows.append({**row, "image": f"{number}.png"} if mark else row)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_command_writes_what_the_library_freezes(tmp_path, data, capsys):
    folder = save_tiny_checkpoint(tmp_path / "own")
    out = tmp_path / "out"
    words = ["experts", "freeze", str(folder), str(out), "--data", str(data), "--batch-size", "2"]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["destination"] == str(out)
    processor = HyperLlavaProcessor.from_pretrained(folder)
    settings = {"processor": processor, "template": "vicuna_v1", "max_length": None}
    rows = open_rows([DataSource(str(data))], **settings)
    collate = ConversationCollator(**settings)
    expected = freeze_experts(load(folder), [collate([row]) for row in rows])
    found = load(out)
    assert found.config.expert_source == "static"
    assert set(found.state_dict()) == set(expected.state_dict())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--rows": "0"}, ["0 rows", "at least one"]),
        ({"--data": "missing.json"}, ["missing.json"]),
        ({"--device": "cuda:9"}, ["no device", "cuda:9"]),
    ],
)
def test_a_wrong_call_writes_nothing(tmp_path, data, capsys, change, words):
    folder = save_tiny_checkpoint(tmp_path / "own")
    options = {"--data": str(data), "--device": "cpu", **change}
    pairs = [word for pair in options.items() for word in pair]
    assert main(["experts", "freeze", str(folder), str(tmp_path / "out"), *pairs]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "out").exists()


def test_the_model_itself_is_never_replaced(tmp_path, data, capsys):
    folder = save_tiny_checkpoint(tmp_path / "own")
    words = ["--data", str(data), "--overwrite"]
    assert main(["experts", "freeze", str(folder), str(folder), *words]) == 2
    assert "never written to" in capsys.readouterr().err
    assert load(folder).config.expert_source == "guided"
