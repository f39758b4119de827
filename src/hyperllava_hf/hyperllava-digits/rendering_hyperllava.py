"""Render conversations to text and locate what the assistant says in it."""

from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from .chat_templates_hyperllava import has_generation_markers
from .conversations_hyperllava import name_sample


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text.

    Attributes:
        text: The rendered conversation, one image mark an image.
        spans: Character ranges (start, end) of what the assistant says, its end mark included.
        prompt_end: Characters before the first assistant turn's content; None without an assistant
            turn.
    """

    text: str
    spans: list[tuple[int, int]]
    prompt_end: int | None


def render_chats(
    conversations: list[list[dict[str, Any]]], template: str, options: dict[str, Any], track: bool
) -> list[RenderedChat]:
    """Render a batch of conversations.

    Args:
        conversations: Normalised conversations.
        template: Jinja source.
        options: As for `render_chat`.
        track: Whether to locate what the assistant says.

    Returns:
        One rendered conversation each.
    """
    total = len(conversations)
    return [
        render_chat(messages, template, name_sample(index, total), options, track)
        for index, messages in enumerate(conversations)
    ]


def render_chat(
    messages: list[dict[str, Any]], template: str, where: str, options: dict[str, Any], track: bool
) -> RenderedChat:
    """Render one conversation.

    Args:
        messages: The conversation: dicts with "role" and "content".
        template: Jinja source.
        where: Name of the conversation for messages to the user, such as "sample 3".
        options: Arguments of transformers' renderer: `add_generation_prompt`,
            `continue_final_message`, `tools`, `documents`, and variables of the template.
        track: Whether to locate what the assistant says.

    Returns:
        The text and, if tracked, the places of the assistant's words.

    Raises:
        ValueError: If the template refuses the conversation.
    """
    first_answer = next(
        (i for i, message in enumerate(messages) if message["role"] == "assistant"), None
    )
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
            f"{where}: the chat template renders the first prompt differently once it is answered, "
            "so that its guidance cannot be marked. Wrap what the assistant says in {% generation "
            "%} and {% endgeneration %}, or pass chat_template='vicuna_v1'."
        )
    return RenderedChat(text, [], len(prompt))


def _render(
    messages: list[dict[str, Any]], template: str, where: str, options: dict[str, Any], marked: bool
) -> tuple[str, list[tuple[int, int]]]:
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=marked,
            **options,
        )
    except ValueError:
        raise
    except Exception as error:
        # A template is a program: beside jinja2's own errors it can raise any of Python's.
        kind = type(error)
        name = "" if kind.__module__.startswith("jinja2") else f"{kind.__name__}: "
        raise ValueError(
            f"{where}: the chat template cannot be rendered: {name}{error}. Correct the "
            "conversation, or pass another chat_template."
        ) from error
    return texts[0], [tuple(span) for span in spans[0]] if spans else []
