"""transformers' pipeline("image-text-to-text") on the bundled checkpoint, package and remote code.

The checkpoint is trained, so that a wrong image or a wrong row changes the answer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "src" / "hyperllava_hf" / "hyperllava-digits")
PICTURES = [ROOT / "examples" / f"scene-{number}.png" for number in (1, 2)]
DRAWN = json.loads((ROOT / "examples" / "scenes.json").read_text(encoding="utf-8"))
OPTIONS = {"generate_kwargs": {"max_new_tokens": 40, "do_sample": False}, "return_full_text": False}

REMOTE = """
import sys
sys.modules["hyperllava_hf"] = None
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=sys.argv[1], trust_remote_code=True, device="cpu")
content = [{"type": "image", "path": sys.argv[2]}, {"type": "text", "text": "Describe the image."}]
options = {"generate_kwargs": {"max_new_tokens": 40, "do_sample": False}}
(answer,) = pipe(text=[{"role": "user", "content": content}], return_full_text=False, **options)
assert type(pipe.model).__module__.startswith("transformers_modules.")
print(answer["generated_text"])
"""


def user_turn(picture, question):
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def read_answers(outputs):
    """The texts of one call, whether it was of one input or of several."""
    firsts = [output[0] if isinstance(output, list) else output for output in outputs]
    return [first["generated_text"].strip() for first in firsts]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("image-text-to-text", model=DIGITS, trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def chats():
    pictures = [Image.open(path) for path in PICTURES]
    return [user_turn(picture, "Describe the image.") for picture in pictures] + [
        user_turn(pictures[1], "How many digits are there?")
    ]


def test_chat_describes_the_picture(pipe, chats):
    (answer,) = read_answers(pipe(text=chats[0], **OPTIONS))
    assert answer == DRAWN[PICTURES[0].name]["description"]


def test_batch_equals_single(pipe, chats):
    alone = [read_answers(pipe(text=chat, **OPTIONS))[0] for chat in chats]
    assert len(set(alone)) == len(alone)
    # Rows of different lengths, so that the batch is padded.
    assert read_answers(pipe(text=chats, batch_size=2, **OPTIONS)) == alone
    assert read_answers(pipe(text=chats, batch_size=3, **OPTIONS)) == alone


def test_prompt_and_image_without_a_chat_give_the_same_answer(pipe, chats):
    prompt = pipe.processor.apply_chat_template(chats[0], add_generation_prompt=True)
    expected = read_answers(pipe(text=chats[0], **OPTIONS))
    for image in (Image.open(PICTURES[0]), str(PICTURES[0])):
        assert read_answers(pipe(images=image, text=prompt, **OPTIONS)) == expected


def test_full_text_continues_the_chat(pipe, chats):
    outputs = pipe(text=chats[0], generate_kwargs=OPTIONS["generate_kwargs"])
    *history, last = outputs[0]["generated_text"]
    assert [turn["role"] for turn in (*history, last)] == ["user", "assistant"]
    assert last["content"].strip() == DRAWN[PICTURES[0].name]["description"]


def test_pipeline_of_remote_code_needs_no_package():
    printed = subprocess.check_output(
        [sys.executable, "-c", REMOTE, DIGITS, str(PICTURES[0])], text=True, timeout=120
    )
    assert printed.strip() == DRAWN[PICTURES[0].name]["description"]
