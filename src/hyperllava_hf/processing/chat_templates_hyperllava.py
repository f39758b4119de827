r"""LLaVA's two conversation formats as chat templates.

`vicuna_v1` (LLaVA's "v1", the default)
    SYSTEM USER: <image>\nQUESTION ASSISTANT: ANSWER</s>USER: NEXT ASSISTANT:
`plain` (first training stage: image and caption, no words of a user)
    <image>CAPTION\n

Image marks come first in a user's turn, each followed by a line break, as LLaVA puts them; to place
an image inside a sentence, give the content as a string and write the mark there. The space before
an answer belongs to the answer and white space in front of the answer's text is dropped, so that an
answer has the same tokens whether it was generated or is read back from the history. An empty
answer is the end mark alone.

What the assistant says is wrapped in generation markers, from which labels and guidance are
derived.

A text that the processor renders has no BOS, which its tokenizer adds. Others tokenise a rendered
text without special tokens (a tokenizer's own `apply_chat_template`, vLLM's server): for them the
template writes the BOS.
"""

DEFAULT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# The processor says `adds_bos`.
_BOS = """
{%- if bos_token and not adds_bos -%}{{- bos_token -}}{%- endif -%}
"""

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
                {{- raise_exception("a turn of role '" ~ message['role'] ~ "' holds a part of "
                    ~ "type '" ~ part['type'] ~ "'; expected text, and images in user turns only")
                -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set mark = image_token | default('<image>') -%}
"""

VICUNA_V1 = (
    _BOS
    + _MACROS
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
        {{- raise_exception("turn " ~ loop.index0 ~ " has role '" ~ message['role']
            ~ "', expected '" ~ expected
            ~ "': an optional system message, then user and assistant in turn") -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'USER: ' ~ marks(message) ~ texts(message) -}}
    {%- else -%}
        {%- set answer = texts(message).lstrip() -%}
        {{- ' ASSISTANT:' -}}
        {% generation %}
        {{- (' ' ~ answer if answer else '') ~ stop -}}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
)

PLAIN = (
    _BOS
    + _MACROS
    + """
{%- for message in messages -%}
    {%- set expected = ['user', 'assistant', 'no further turn'][[loop.index0, 2] | min] -%}
    {%- if message['role'] != expected -%}
        {{- raise_exception("turn " ~ loop.index0 ~ " has role '" ~ message['role']
            ~ "', expected '" ~ expected
            ~ "': the plain format is one image (user) and its caption (assistant)") -}}
    {%- elif message['role'] == 'assistant' -%}
        {%- set caption = texts(message) -%}
        {% generation %}
        {{- caption ~ '\\n' -}}
        {% endgeneration %}
    {%- else -%}
        {%- set found = namespace(marks='') -%}
        {%- if message['content'] is string -%}
            {%- set found.marks = mark * message['content'].count(mark) -%}
        {%- else -%}
            {%- for part in message['content'] or [] -%}
                {%- if part['type'] == 'image' -%}
                    {%- set found.marks = found.marks ~ mark -%}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- if not found.marks -%}
            {{- raise_exception("the user turn holds no image, expected one: the plain format is "
                ~ "an image and its caption") -}}
        {%- endif -%}
        {{- found.marks -}}
    {%- endif -%}
{%- endfor -%}
"""
)

CHAT_TEMPLATES = {"vicuna_v1": VICUNA_V1, "plain": PLAIN}


def resolve_template(chosen: str | None, own: str | dict[str, str] | None) -> str:
    """Find the Jinja source that a call means.

    Args:
        chosen: A name, Jinja source, or None for the processor's own.
        own: The processor's template, or templates by name with a "default".

    Returns:
        Jinja source.

    Raises:
        ValueError: If the name is unknown.
    """
    named = {**CHAT_TEMPLATES, **(own if isinstance(own, dict) else {"default": own})}
    source = named.get(chosen or "default")
    if source is not None:
        return source
    if chosen is None or not any(sign in chosen for sign in ("{", "\n", " ")):
        raise ValueError(
            f"there is no chat template {chosen or 'default'!r}, expected one of {sorted(named)} "
            "or Jinja source. Leave chat_template out for the default."
        )
    return chosen


def has_generation_markers(template: str) -> bool:
    """Tell whether a template marks what the assistant says.

    Args:
        template: Jinja source.

    Returns:
        True if spans can be derived from it.
    """
    return "endgeneration" in template


def choose_columns(
    template: str, has_answer: bool, return_labels: bool, return_assistant_tokens_mask: bool
) -> tuple[str, ...]:
    """Decide which columns a call on conversations adds to the tokens.

    Args:
        template: Jinja source.
        has_answer: Whether one of the conversations holds an assistant turn.
        return_labels: Whether labels were asked for.
        return_assistant_tokens_mask: Whether assistant masks were asked for.

    Returns:
        Names among "guidance_mask", "assistant_masks" and "labels".

    Raises:
        ValueError: If the template does not mark what the assistant says and a column needs it.
    """
    if (return_labels or return_assistant_tokens_mask) and not has_generation_markers(template):
        raise ValueError(
            "labels and assistant masks need a chat template that wraps what the assistant says in "
            "{% generation %} and {% endgeneration %}, and this one does not. Pass "
            "chat_template='vicuna_v1', or add the markers."
        )
    wanted = {
        "guidance_mask": has_answer,
        "assistant_masks": return_assistant_tokens_mask,
        "labels": return_labels,
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)
