"""LLaVA's two conversation formats as chat templates, and their rendering.

`vicuna_v1` (LLaVA's "v1", the default)
    SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>USER: NEXT ASSISTANT:
`plain` (first training stage: image and caption, no words of a user)
    <image>CAPTION\\n

Image marks come first in a user's turn, each followed by a line break, as LLaVA puts them; to place an image
inside a sentence, give the content as a string and write the mark there. The space before an answer belongs
to the answer and white space in front of the answer's text is dropped, so that an answer has the same tokens
whether it was generated or is read back from the history. An empty answer is the end mark alone.

What the assistant says is wrapped in generation markers, from which labels and guidance are derived.
"""

from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

DEFAULT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# Text and image marks of a message whose content is a string or a list of parts.
_MACROS = """
{%- macro texts(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] != 'image' or message['role'] != 'user' -%}
                {{- raise_exception("a turn of role '" ~ message['role'] ~ "' holds a part of type '"
                    ~ part['type'] ~ "'; expected text, and images only in user turns") -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set mark = image_token | default('<image>') -%}
"""

VICUNA_V1 = (
    _MACROS
    + """
{%- macro marks(message) -%}
    {%- if message['content'] is not string and message['content'] -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}{{- mark ~ '\\n' -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set stop = eos_token | default('</s>') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = texts(messages[0]) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = \""""
    + DEFAULT_SYSTEM
    + """\" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- if system -%}{{- system ~ ' ' -}}{%- endif -%}
{%- for message in turns -%}
    {%- set expected = ['user', 'assistant'][loop.index0 % 2] -%}
    {%- if message['role'] != expected -%}
        {{- raise_exception("turn " ~ loop.index0 ~ " has role '" ~ message['role'] ~ "', expected '" ~ expected
            ~ "': one optional system message, then user and assistant in turn") -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'USER: ' ~ marks(message) ~ texts(message) -}}
    {%- else -%}
        {%- set answer = texts(message).lstrip() -%}
        {{- ' ASSISTANT:' -}}
        {%- generation -%}
        {{- (' ' ~ answer if answer else '') ~ stop -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
)

PLAIN = (
    _MACROS
    + """
{%- for message in messages -%}
    {%- set expected = ['user', 'assistant', 'no further turn'][[loop.index0, 2] | min] -%}
    {%- if message['role'] != expected -%}
        {{- raise_exception("turn " ~ loop.index0 ~ " has role '" ~ message['role'] ~ "', expected '" ~ expected
            ~ "': the plain format is one image (user) and its caption (assistant)") -}}
    {%- elif message['role'] == 'assistant' -%}
        {%- set caption = texts(message) -%}
        {%- generation -%}
        {{- caption ~ '\\n' -}}
        {%- endgeneration -%}
    {%- else -%}
        {%- set found = namespace(marks='') -%}
        {%- if message['content'] is string -%}
            {%- set found.marks = mark * message['content'].count(mark) -%}
        {%- else -%}
            {%- for part in message['content'] or [] -%}
                {%- if part['type'] == 'image' -%}{%- set found.marks = found.marks ~ mark -%}{%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- if not found.marks -%}
            {{- raise_exception("the user turn holds no image; the plain format is an image and its caption") -}}
        {%- endif -%}
        {{- found.marks -}}
    {%- endif -%}
{%- endfor -%}
"""
)

CHAT_TEMPLATES = {"vicuna_v1": VICUNA_V1, "plain": PLAIN}


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text.

    Attributes:
        text: The rendered conversation, one image mark an image.
        spans: Character ranges (start, end) of what the assistant says, its end mark included.
        prompt_end: Characters before the first assistant turn's content; None without an assistant turn.
    """

    text: str
    spans: list[tuple[int, int]]
    prompt_end: int | None


def has_generation_markers(template: str) -> bool:
    """Tell whether a template marks what the assistant says.

    Args:
        template: Jinja source.

    Returns:
        True if spans can be derived from it.
    """
    return "endgeneration" in template


def render_chat(
    messages: list[dict[str, Any]], template: str, where: str, options: dict[str, Any], track: bool
) -> RenderedChat:
    """Render one conversation.

    Args:
        messages: The conversation: dicts with "role" and "content".
        template: Jinja source.
        where: Name of the conversation for messages to the user, such as "sample 3".
        options: Arguments of transformers' renderer: `add_generation_prompt`, `continue_final_message`, `tools`,
            `documents`, and variables of the template.
        track: Whether to locate what the assistant says.

    Returns:
        The text and, if tracked, the places of the assistant's words.

    Raises:
        ValueError: If the template refuses the conversation.
    """
    first_answer = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
    track = track and first_answer is not None
    marked = track and has_generation_markers(template)
    text, spans = _render(messages, template, where, options, marked)
    if not track:
        return RenderedChat(text, [], None)
    # A continued final message is cut where it ends, so its span may reach past the text.
    spans = [(start, min(end, len(text))) for start, end in spans]
    if spans:
        return RenderedChat(text, spans, spans[0][0])
    prompt_options = {**options, "add_generation_prompt": True, "continue_final_message": False}
    prompt, _ = _render(messages[:first_answer], template, where, prompt_options, False)
    if not text.startswith(prompt):
        raise ValueError(
            f"{where}: the chat template renders the first prompt differently once it is answered, so that its "
            "guidance cannot be marked. Wrap what the assistant says in {% generation %} and {% endgeneration %}, "
            "or pass chat_template='vicuna_v1'."
        )
    return RenderedChat(text, [], len(prompt))


def _render(
    messages: list[dict[str, Any]], template: str, where: str, options: dict[str, Any], marked: bool
) -> tuple[str, list[tuple[int, int]]]:
    try:
        texts, spans = render_jinja_template(
            conversations=[messages], chat_template=template, return_assistant_tokens_mask=marked, **options
        )
    except Exception as error:
        # jinja2 is transformers' dependency, not ours: its errors are told by their module.
        if type(error).__module__.startswith("jinja2"):
            raise ValueError(f"{where}: {error}. Correct the conversation, or pass another chat_template.") from error
        raise
    return texts[0], [tuple(span) for span in spans[0]] if spans else []
