"""The processor's calls on conversations: render, tokenise, place labels and guidance."""

import re
from typing import Any

from transformers.utils import logging

from .call_arguments_hyperllava import CALL_ARGUMENTS, sort_arguments
from .chat_templates_hyperllava import choose_columns, resolve_template
from .conversations_hyperllava import name_sample, normalize_messages, split_batch
from .image_batches_hyperllava import collect_images
from .rendering_hyperllava import RenderedChat, render_chats

logger = logging.get_logger(__name__)


class ConversationCalls:
    """The part of `HyperLlavaProcessor` that takes conversations."""

    tokenizer: Any
    image_token: str
    chat_template: Any
    _encode: Any

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: Any = None,
        return_labels: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render conversations and, with `tokenize=True`, prepare them with their images.

        Args:
            conversation: Messages with "role" and "content", or a list of conversations. Content is
                a string (image marks written out) or a list of {"type": "text"} and {"type":
                "image"} parts; an image is given as "image", "path", "url", "base64" or "bytes", or
                left out and passed as `images`.
            chat_template: "vicuna_v1", "plain", another template's name, or Jinja source; None
                takes the processor's.
            tools: Passed to the template.
            documents: Passed to the template.
            add_generation_prompt: Whether to end with the header of an assistant turn.
            continue_final_message: Whether to leave the last message open.
            return_assistant_tokens_mask: Whether to return `assistant_masks`, 1 on what the
                assistant says.
            tokenize: Whether to return model inputs rather than text.
            return_dict: Whether to return all inputs rather than `input_ids` alone.
            return_tensors: "pt", "np" or None.
            return_labels: Whether to return `labels`; pads right unless `padding_side` says
                otherwise.
            processor_kwargs: Arguments of `__call__`.
            **kwargs: Arguments of `__call__` and variables of the template.

        Returns:
            Text, or the model inputs; with them `guidance_mask` as soon as one conversation holds
            an assistant turn.

        Raises:
            ValueError: If a conversation is malformed or its images do not match its marks.
        """
        if kwargs.pop("sanitize_control_tokens", False):
            raise ValueError(
                "sanitize_control_tokens is not supported: text that spells a control token "
                "becomes that token, as in LLaVA. Remove such text from the conversation."
            )
        template = self.get_chat_template(chat_template)
        conversations, is_batch = split_batch(conversation)
        normalized = [
            normalize_messages(messages, name_sample(index, len(conversations)))
            for index, messages in enumerate(conversations)
        ]
        call = {name: kwargs.pop(name) for name in list(kwargs) if name in CALL_ARGUMENTS}
        call = {**call, **(processor_kwargs or {})}
        images = call.pop("images", kwargs.pop("images", None))
        has_answer = any(m["role"] == "assistant" for messages, _ in normalized for m in messages)
        extras = choose_columns(template, has_answer, return_labels, return_assistant_tokens_mask)
        options = {
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "image_token": self.image_token,
            "adds_bos": True,
            **self.tokenizer.special_tokens_map,
            **kwargs,
        }
        unread = [name for name in kwargs if not re.search(rf"\b{re.escape(name)}\b", template)]
        if unread:
            logger.warning_once(
                f"apply_chat_template: {', '.join(sorted(unread))} is neither an argument nor a "
                "variable of the template, and has no effect."
            )
        messages = [cleaned for cleaned, _ in normalized]
        chats = render_chats(messages, template, options, tokenize and bool(extras))
        if not tokenize:
            return [chat.text for chat in chats] if is_batch else chats[0].text
        if return_tensors not in (None, "auto"):
            call["return_tensors"] = return_tensors
        found = collect_images([found for _, found in normalized], images, is_batch)
        outputs = self._encode_chats(chats, found, call, extras)
        return outputs if return_dict else outputs["input_ids"]

    def _encode_chats(
        self, chats: list[RenderedChat], images: Any, call: dict[str, Any], extras: tuple[str, ...]
    ) -> Any:
        """Encode rendered conversations with the arguments of the call."""
        arguments, image_settings = sort_arguments(call)
        bos = self.tokenizer.bos_token
        if bos and chats[0].text.startswith(bos):
            # A template that writes BOS itself must not get a second one.
            arguments.add_special_tokens = False
        return self._encode(chats, images, arguments, image_settings, extras)

    def get_chat_template(self, chat_template: str | None = None) -> str:
        """Resolve a chat template.

        Args:
            chat_template: A name, Jinja source, or None for the processor's own.

        Returns:
            Jinja source.

        Raises:
            ValueError: If the name is unknown.
        """
        return resolve_template(chat_template, self.chat_template)
