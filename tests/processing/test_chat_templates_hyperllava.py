"""LLaVA's conversation formats, to the character."""

import pytest

from hyperllava_hf.processing.chat_templates_hyperllava import CHAT_TEMPLATES
from tests.processing.builders import answer, ask, build_image, escape

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE = build_image()
SYSTEM_MESSAGE = {"role": "system", "content": "Be brief."}

VICUNA = {
    "one question": ([ask("Q", IMAGE)], {}, f"{SYSTEM} USER: <image>\nQ"),
    "to generate": (
        [ask("Q", IMAGE)],
        {"add_generation_prompt": True},
        f"{SYSTEM} USER: <image>\nQ ASSISTANT:",
    ),
    "two turns": (
        [ask("Q", IMAGE), answer("A"), ask("R")],
        {"add_generation_prompt": True},
        f"{SYSTEM} USER: <image>\nQ ASSISTANT: A</s>USER: R ASSISTANT:",
    ),
    "strings": (
        [{"role": "user", "content": "<image>\nQ"}, {"role": "assistant", "content": "A"}],
        {},
        f"{SYSTEM} USER: <image>\nQ ASSISTANT: A</s>",
    ),
    "system": ([SYSTEM_MESSAGE, ask("Q")], {}, "Be brief. USER: Q"),
    "system as parts": (
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, ask("Q")],
        {},
        "Be brief. USER: Q",
    ),
    "empty system": ([{"role": "system", "content": ""}, ask("Q")], {}, "USER: Q"),
    "two images": ([ask("Q", IMAGE, IMAGE)], {}, f"{SYSTEM} USER: <image>\n<image>\nQ"),
    "image after text": (
        [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image"}]}],
        {},
        f"{SYSTEM} USER: <image>\nQ",
    ),
    "openai": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}, "Q"]}],
        {},
        f"{SYSTEM} USER: <image>\nQ",
    ),
    "leading space": ([ask("Q"), answer("  A ")], {}, f"{SYSTEM} USER: Q ASSISTANT: A </s>"),
    "empty answer": ([ask("Q"), answer("")], {}, f"{SYSTEM} USER: Q ASSISTANT:</s>"),
    "no content": (
        [ask("Q"), {"role": "assistant", "content": None}],
        {},
        f"{SYSTEM} USER: Q ASSISTANT:</s>",
    ),
    "continued": (
        [ask("Q"), answer("A red")],
        {"continue_final_message": True},
        f"{SYSTEM} USER: Q ASSISTANT: A red",
    ),
    "braces": ([ask("{{ 1 }} {% x %}")], {}, f"{SYSTEM} USER: {{{{ 1 }}}} {{% x %}}"),
}


@pytest.mark.parametrize("case", VICUNA)
def test_vicuna_v1_to_the_character(processor, case):
    conversation, options, expected = VICUNA[case]
    assert processor.apply_chat_template(conversation, **options) == expected
    named = processor.apply_chat_template(conversation, chat_template="vicuna_v1", **options)
    assert named == expected
    batch = processor.apply_chat_template([conversation, conversation], **options)
    assert batch == [expected, expected]


PLAIN = {
    "pair": ([ask("ignored", IMAGE), answer("A cat.")], "<image>A cat.\n"),
    "strings": (
        [{"role": "user", "content": "<image>\n"}, {"role": "assistant", "content": "A cat."}],
        "<image>A cat.\n",
    ),
    "to generate": ([ask("", IMAGE)], "<image>"),
    "two images": ([ask("", IMAGE, IMAGE), answer("Cats.")], "<image><image>Cats.\n"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_to_the_character(processor, case):
    conversation, expected = PLAIN[case]
    assert processor.apply_chat_template(conversation, chat_template="plain") == expected


REFUSED = [
    ("vicuna_v1", [ask("Q"), ask("R")], ("turn 1 has role 'user'", "expected 'assistant'")),
    ("vicuna_v1", [answer("A")], ("turn 0 has role 'assistant'", "expected 'user'")),
    ("vicuna_v1", [SYSTEM_MESSAGE, SYSTEM_MESSAGE], ("turn 0 has role 'system'",)),
    ("vicuna_v1", [ask("Q"), SYSTEM_MESSAGE], ("turn 1 has role 'system'",)),
    ("vicuna_v1", [{"role": "tool", "content": "x"}], ("role 'tool'", "expected 'user'")),
    (
        "vicuna_v1",
        [ask("Q"), {"role": "assistant", "content": [{"type": "image"}]}],
        ("role 'assistant' holds a part of type 'image'", "user turns only"),
    ),
    ("plain", [ask("Q"), answer("A")], ("holds no image", "expected one")),
    ("plain", [SYSTEM_MESSAGE, ask("Q", IMAGE)], ("role 'system'", "expected 'user'")),
    ("plain", [ask("", IMAGE), answer("A"), ask("", IMAGE)], ("expected 'no further turn'",)),
]


@pytest.mark.parametrize(("template", "conversation", "parts"), REFUSED)
def test_conversations_out_of_form_are_refused_by_name(processor, template, conversation, parts):
    with pytest.raises(ValueError, match=escape("the prompt: ", *parts)):
        processor.apply_chat_template(conversation, chat_template=template)
    good = [ask("", IMAGE), answer("A")]
    with pytest.raises(ValueError, match=escape("sample 1: ", *parts)):
        processor.apply_chat_template([good, conversation], chat_template=template)


MALFORMED = [
    ([], ("found []", "expected a list of messages")),
    ("Hello", ("found 'Hello'", "expected a list of messages")),
    ([[]], ("the prompt is an empty conversation",)),
    (["Hello"], ("message 0: found 'Hello'", "'role' and 'content'")),
    ([{"content": "x"}], ("message 0", "'role'")),
    ([{"role": "user", "content": 7}], ("content is a int", "string or a list")),
    ([{"role": "user", "content": [{"type": "video"}]}], ("the part {'type': 'video'}", "image")),
    ([{"role": "user", "content": [{"type": "text"}]}], ("the part {'type': 'text'}",)),
]


@pytest.mark.parametrize(("conversation", "parts"), MALFORMED)
def test_what_is_no_conversation_is_refused(processor, conversation, parts):
    with pytest.raises(ValueError, match=escape(*parts)):
        processor.apply_chat_template(conversation)


def test_other_templates_are_taken_as_source_or_by_name(processor):
    source = "{% for message in messages %}{{ message['role'] }};{% endfor %}{{ colour }}"
    conversation = [ask("Q"), answer("A")]
    found = processor.apply_chat_template(conversation, chat_template=source, colour="red")
    assert found == "user;assistant;red"
    processor.chat_template = {"default": source, "short": "{{ messages | length }}"}
    assert processor.apply_chat_template(conversation, chat_template="short") == "2"
    assert processor.apply_chat_template(conversation) == "user;assistant;"
    assert processor.get_chat_template("plain") == CHAT_TEMPLATES["plain"]
    with pytest.raises(ValueError, match=escape("no chat template 'vicuna'", "vicuna_v1")):
        processor.apply_chat_template(conversation, chat_template="vicuna")


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ messages.x.y }}", "{{ 'a' + 1 }}", "{% if %}"]
)
def test_a_template_that_fails_is_one_error(processor, source):
    with pytest.raises(ValueError, match=r"cannot be rendered: .*pass another chat_templ"):
        processor.apply_chat_template([ask("Q")], chat_template=source)


def test_the_conversation_is_left_as_it_was(processor):
    conversation = [ask("Q", IMAGE), answer("A")]
    processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert conversation == [ask("Q", IMAGE), answer("A")]


@pytest.mark.parametrize("name", sorted(CHAT_TEMPLATES))
def test_a_rendering_by_the_tokenizer_makes_the_same_tokens(processor, name):
    # As vLLM's server does: nothing else adds a BOS to what a tokenizer renders.
    messages = [{"role": "user", "content": [{"type": "image"}]}, answer("red 7")]
    by_tokenizer = processor.tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATES[name], tokenize=False
    )
    text = processor.apply_chat_template(messages, chat_template=name)
    assert by_tokenizer == processor.tokenizer.bos_token + text
    bare = processor.tokenizer(by_tokenizer, add_special_tokens=False)["input_ids"]
    assert bare == processor.tokenizer(text)["input_ids"]
