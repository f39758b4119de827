"""TRL's SFTTrainer on a conversational image dataset, with loss on the answers alone.

Three ways: prompt and completion, TRL's assistant_only_loss (which TRL refuses for images below
transformers 5.18), and the processor's own labels through a data collator.
"""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers import __version__ as transformers_version
from trl import SFTConfig, SFTTrainer

from hyperllava_hf import lora_config
from tests.tiny_checkpoint import save_tiny_checkpoint

GUIDE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
ROWS = {"red": (200, 0, 0), "green": (0, 200, 0), "deep blue": (0, 0, 200), "grey": (90, 90, 90)}
QUESTION = "Which colour?"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NUM_IMAGE_TOKENS = 4
IGNORED = -100
LACKS_ASSISTANT_LOSS = tuple(map(int, transformers_version.split(".")[:2])) < (5, 18)


@pytest.fixture(scope="module", params=["token", "prompt"])
def folder(request, tmp_path_factory):
    return save_tiny_checkpoint(
        tmp_path_factory.mktemp("trl"), language_guidance_scope=request.param
    )


@pytest.fixture
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def build_dataset(form):
    rows = []
    for answer, colour in ROWS.items():
        user = {"role": "user", "content": QUESTION}
        assistant = {"role": "assistant", "content": answer}
        turns = {"messages": [user, assistant]}
        if form == "completion":
            turns = {"prompt": [user], "completion": [assistant]}
        rows.append({"images": [Image.new("RGB", (30, 20), colour)], **turns})
    return Dataset.from_list(rows)


def build_trainer(folder, processor, form, out, **settings):
    """A trainer of three steps on the CPU."""
    arguments = SFTConfig(
        output_dir=str(out),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_length=None,  # cutting a row could cut its image in two
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        assistant_only_loss=form == "assistant",
        remove_unused_columns=form != "collator",
    )
    return SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder),
        args=arguments,
        train_dataset=build_dataset(form),
        processing_class=processor,
        data_collator=build_collator(processor) if form == "collator" else None,
        **settings,
    )


def build_collator(processor):
    """The collator that docs/ecosystem.md shows."""
    text = GUIDE.read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested: collate -->\n```python\n(.*?)^```", text, re.DOTALL | re.M)
    names = {"processor": processor}
    exec(code, names)
    return names["collate"]


def spell_row(tokenizer, answer, has_bos):
    """Ids and labels of one row, written out a piece at a time: one token a character."""

    def spell(text):
        return tokenizer.convert_tokens_to_ids(list(text))

    image = tokenizer.convert_tokens_to_ids(["<image>"]) * NUM_IMAGE_TOKENS
    prompt = [tokenizer.bos_token_id] if has_bos else []
    prompt += spell(f"{SYSTEM} USER: ") + image + spell(f"\n{QUESTION} ASSISTANT:")
    said = [*spell(f" {answer}"), tokenizer.eos_token_id]
    return prompt + said, [IGNORED] * len(prompt) + said


def check_batch(batch, tokenizer, has_bos):
    """Every id, label and mask of the batch, padding included."""
    possible = [spell_row(tokenizer, answer, has_bos) for answer in ROWS]
    length = batch["input_ids"].shape[1]
    assert batch["pixel_values"].shape == (len(batch["input_ids"]), 3, 28, 28)
    for ids, labels, mask in zip(
        *(batch[name].tolist() for name in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        expected, supervised = next(row for row in possible if row[0] == ids[: sum(mask)])
        missing = length - len(expected)
        assert ids == expected + [tokenizer.pad_token_id] * missing
        assert labels == supervised + [IGNORED] * missing
        assert mask == [1] * len(expected) + [0] * missing


def train_and_check(trainer):
    """Train; the losses are those of the model's own forward, and projector and experts move."""
    model = trainer.model
    start = {name: value.clone() for name, value in model.named_parameters()}
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert float(losses[0]) == pytest.approx(expected, abs=1e-3)
    trained = {n for n, v in model.named_parameters() if not torch.equal(v.cpu(), start[n])}
    for part in ("visual_expert.", "language_expert.", "multi_modal_projector."):
        names = {name for name in start if part in name and start[name].requires_grad}
        assert names, part
        assert names <= trained, part


@pytest.mark.parametrize("form", ["completion", "collator"])
def test_answers_alone_are_learnt(folder, processor, form, tmp_path):
    trainer = build_trainer(folder, processor, form, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    # TRL leaves BOS to the chat template, and LLaVA's leaves it to the tokenizer.
    check_batch(batch, processor.tokenizer, has_bos=form == "collator")
    train_and_check(trainer)


def test_assistant_only_loss(folder, processor, tmp_path):
    if LACKS_ASSISTANT_LOSS:
        with pytest.raises(ValueError, match=r"requires transformers>=5\.18\.0"):
            build_trainer(folder, processor, "assistant", tmp_path)
        return
    trainer = build_trainer(folder, processor, "assistant", tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    check_batch(batch, processor.tokenizer, has_bos=False)
    train_and_check(trainer)


def test_lora_through_the_trainer(folder, processor, tmp_path):
    trainer = build_trainer(
        folder, processor, "collator", tmp_path, peft_config=lora_config(r=2, lora_dropout=0.0)
    )
    start = {n: v.clone() for n, v in trainer.model.named_parameters() if v.requires_grad}
    trainer.train()
    moved = {n for n, v in trainer.model.named_parameters() if n in start and (v != start[n]).any()}
    assert all("lora_" in name or ".modules_to_save." in name for name in start)
    for part in ("lora_B.", "visual_expert.", "language_expert.", "multi_modal_projector."):
        assert {name for name in start if part in name} <= moved, part
