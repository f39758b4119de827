"""The processor of HyperLLaVA: text and images in, what the model's `forward` takes out.

It is LLaVA's processor (same arguments, same token count an image) plus three things:

- `labels`, which supervise what the assistant says and nothing else;
- `guidance_mask`, 1 on a conversation's first prompt, from which the language experts take their
  guidance under the `prompt` scope (without it an answer in the history would steer its own
  guidance);
- one folder that transformers 4.57 and 5 both read, whichever of them wrote it.

Rows are padded left by default, because `generate` continues them on the right, and right with
labels.
"""

import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .call_arguments_hyperllava import CALL_ARGUMENTS, TextArguments, sort_arguments
from .chat_encoding_hyperllava import fit_and_pad, tokenize_chats
from .chat_templates_hyperllava import VICUNA_V1, choose_columns, resolve_template
from .conversations_hyperllava import name_sample, normalize_messages, split_batch
from .image_batches_hyperllava import assign_images, collect_images, load_images
from .image_geometry_hyperllava import pad_to_square_and_resize
from .image_loading_hyperllava import load_rgb_image
from .image_processing_hyperllava import AUTO_MAP, HyperLlavaImageProcessor
from .labels_hyperllava import build_labels
from .rendering_hyperllava import RenderedChat, render_chat
from .saving_hyperllava import save_processor
from .token_rows_hyperllava import check_mark_count, expand_image_marks
from .tokenizer_files_hyperllava import save_tokenizer
from .tokenizer_parts_hyperllava import add_missing_tokens, find_image_token_id

# Loading a local folder, transformers 4.57 copies only the files that the entry file itself names,
# and then misses those that they name in turn. So every file of the closure is imported here.
_REST_OF_CLOSURE = (build_labels, load_rgb_image, pad_to_square_and_resize, save_tokenizer)


class HyperLlavaProcessor(ProcessorMixin):
    """Prepare prompts, conversations and images for HyperLLaVA.

    Args:
        image_processor: A `HyperLlavaImageProcessor`.
        tokenizer: A fast tokenizer that has the image token as one token.
        patch_size: Edge of a patch of the vision tower in pixels.
        vision_feature_select_strategy: "default" drops one feature of an image (the CLS), "full"
            keeps all.
        num_additional_image_tokens: Features that the tower adds to its patches (1: CLS).
        image_token: The mark that stands for an image in a prompt.
        chat_template: Jinja source used when a call names no other; None takes `vicuna_v1`. A dict
            of templates by name is understood; its "default" is used.

    Raises:
        ValueError: If the parts do not fit together.
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str = "default",
        num_additional_image_tokens: int = 1,
        image_token: str = "<image>",
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        if not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(
                f"patch_size is {patch_size!r}, expected the edge of a patch of the vision tower "
                "in pixels. Pass patch_size=14 for LLaVA-1.5's CLIP ViT-L/14, else "
                "vision_config.patch_size of config.json."
            )
        if vision_feature_select_strategy not in ("default", "full"):
            raise ValueError(
                f"vision_feature_select_strategy is {vision_feature_select_strategy!r}, expected "
                "'default' or 'full'. Take the value of config.json."
            )
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template or VICUNA_V1)
        self.image_token_id = find_image_token_id(tokenizer, image_token)
        tokenizer.padding_side = "left"

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        """Check a part by what it is, since remote code has its own copy of each class.

        Args:
            argument_name: "image_processor" or "tokenizer".
            argument: The part.

        Returns:
            The class of the part.

        Raises:
            ValueError: If the part is of another kind.
        """
        if argument_name == "tokenizer":
            if not getattr(argument, "is_fast", False):
                raise ValueError(
                    f"the tokenizer is a {type(argument).__name__}, expected a fast tokenizer "
                    "(offsets place the labels). Load it with AutoTokenizer.from_pretrained."
                )
        elif not any(
            base.__name__ == "HyperLlavaImageProcessor" for base in type(argument).__mro__
        ):
            raise ValueError(
                f"the image processor is a {type(argument).__name__}, expected a "
                "HyperLlavaImageProcessor. Convert it with "
                "HyperLlavaImageProcessor.from_dict(image_processor.to_dict())."
            )
        return type(argument)

    # ---------------------------------------------------------------- counting

    @property
    def image_seq_length(self) -> int:
        """Positions that one image takes in a row."""
        return self._count_image_tokens(*self.image_processor.output_size())

    @property
    def image_token_ids(self) -> list[int]:
        """Ids that mark image positions; a list, as transformers 5 and its servers ask for it."""
        return [self.image_token_id]

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything a call may return for the model's `forward`."""
        return ["input_ids", "attention_mask", "pixel_values", "guidance_mask"]

    def _count_image_tokens(self, height: int, width: int) -> int:
        patches = (height // self.patch_size) * (width // self.patch_size)
        dropped = 1 if self.vision_feature_select_strategy == "default" else 0
        return patches + self.num_additional_image_tokens - dropped

    def replace_image_token(
        self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any
    ) -> str:
        """Spell out the positions of one image, for servers that expand marks in the text.

        Args:
            image_inputs: Output of the image processor.
            image_idx: Which image.
            **kwargs: Unused.

        Returns:
            The image token, once a position.
        """
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self.image_token * self._count_image_tokens(height, width)

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Count positions for images of given (height, width), before any is loaded."""
        if image_sizes is None:
            return MultiModalData()
        settings = {
            name: kwargs[name] for name in ("size", "crop_size") if kwargs.get(name) is not None
        }
        count = self._count_image_tokens(*self.image_processor.output_size(**settings))
        return MultiModalData(
            num_image_tokens=[count] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    # ---------------------------------------------------------------- calling

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare prompts and their images.

        Args:
            images: One image, a list of them in the order of their marks, or one list a prompt.
            text: A prompt or a list of prompts, each with one image token an image.
            videos: Must be None.
            audio: Must be None.
            **kwargs: Arguments of the tokenizer (`padding`, `truncation`, `max_length`,
                `return_tensors`, ...) and of the image processor, flat or in `text_kwargs` and
                `images_kwargs`.

        Returns:
            `input_ids` and `attention_mask` of shape (batch, length) and `pixel_values` of shape
            (images, 3, height, width), as far as there are texts and images.

        Raises:
            ValueError: If marks and images do not match, an image cannot be read or a prompt is too
                long.
        """
        if videos is not None or audio is not None or (images is None and text is None):
            raise ValueError(
                "found no text and no image, or video or audio; expected text, images or both. "
                "Pass text=... and images=..."
            )
        arguments, image_settings = sort_arguments(kwargs)
        if text is None:
            loaded = load_images(assign_images(images, None), image_settings)
            return self.image_processor.preprocess(
                loaded, return_tensors=arguments.return_tensors, **image_settings
            )
        prompts = [text] if isinstance(text, str) else text
        if (
            not isinstance(prompts, (list, tuple))
            or not prompts
            or not all(isinstance(t, str) for t in prompts)
        ):
            raise ValueError(
                f"text is {repr(text)[:80]}, expected a string or a list of at least one string. "
                "Join words that are already split."
            )
        chats = [RenderedChat(prompt, [], None) for prompt in prompts]
        return self._encode(chats, images, arguments, image_settings, ())

    def _encode(
        self,
        chats: list[RenderedChat],
        images: Any,
        arguments: TextArguments,
        image_settings: dict[str, Any],
        extras: tuple[str, ...] = (),
    ) -> BatchFeature:
        """Tokenise, count, load images, expand, check lengths and pad: the cheap checks first."""
        rows = tokenize_chats(self.tokenizer, chats, arguments, extras, self.image_token_id)
        marks = [row["input_ids"].count(self.image_token_id) for row in rows]
        grouped = assign_images(images, marks)
        for index, (num_marks, group) in enumerate(zip(marks, grouped, strict=True)):
            check_mark_count(num_marks, len(group), self.image_token, name_sample(index, len(rows)))
        data: dict[str, Any] = {}
        if any(grouped):
            loaded = load_images(grouped, image_settings)
            data = dict(
                self.image_processor.preprocess(loaded, return_tensors="np", **image_settings)
            )
            count = self._count_image_tokens(*data["pixel_values"].shape[-2:])
            rows = [expand_image_marks(row, self.image_token_id, count) for row in rows]
        batch = fit_and_pad(self.tokenizer, rows, arguments, extras, self.image_token_id)
        return BatchFeature(data={**batch, **data}, tensor_type=arguments.return_tensors)

    # ---------------------------------------------------------------- conversations

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
            **self.tokenizer.special_tokens_map,
            **kwargs,
        }
        chats = [
            render_chat(
                messages,
                template,
                name_sample(index, len(normalized)),
                options,
                tokenize and bool(extras),
            )
            for index, (messages, _) in enumerate(normalized)
        ]
        if not tokenize:
            return [chat.text for chat in chats] if is_batch else chats[0].text
        if return_tensors not in (None, "auto"):
            call["return_tensors"] = return_tensors
        arguments, image_settings = sort_arguments(call)
        bos = self.tokenizer.bos_token
        if bos and chats[0].text.startswith(bos):
            # A template that writes BOS itself must not get a second one.
            arguments.add_special_tokens = False
        batch_images = collect_images([found for _, found in normalized], images, is_batch)
        outputs = self._encode(chats, batch_images, arguments, image_settings, extras)
        return outputs if return_dict else outputs["input_ids"]

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

    # ---------------------------------------------------------------- decoding

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode rows of ids.

        Args:
            *args: Arguments of the tokenizer's `batch_decode`.
            **kwargs: Keywords of the tokenizer's `batch_decode`.

        Returns:
            One text a row.
        """
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode what `generate` returned.

        Args:
            generated_outputs: Ids of shape (batch, length).
            skip_special_tokens: Whether to leave out special tokens.
            **kwargs: Keywords of the tokenizer's `batch_decode`.

        Returns:
            One text a row.
        """
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    # ---------------------------------------------------------------- loading and saving

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        processor_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Load the parts; the image processor is always ours, whatever class the folder names."""
        image_processor = HyperLlavaImageProcessor.from_pretrained(
            pretrained_model_name_or_path, **kwargs
        )
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @classmethod
    def from_args_and_dict(
        cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Build from loaded parts and a configuration.

        Args:
            args: Image processor and tokenizer.
            processor_dict: Contents of processor_config.json.
            **kwargs: Arguments that replace those of the configuration.

        Returns:
            The processor.
        """
        # transformers 5 nests the image processor's settings here; 4.57 would take them for the
        # part itself.
        settings = {
            name: value for name, value in processor_dict.items() if name not in cls.attributes
        }
        return super().from_args_and_dict(args, settings, **kwargs)

    def to_dict(self, legacy_serialization: bool = False) -> dict[str, Any]:
        """Serialise the configuration, with the same keys whichever transformers line writes them.

        Args:
            legacy_serialization: Whether to leave the image processor's settings out, as 4.57 does.

        Returns:
            Contents of processor_config.json.
        """
        config = {
            "auto_map": dict(AUTO_MAP),
            "image_token": self.image_token,
            "num_additional_image_tokens": self.num_additional_image_tokens,
            "patch_size": self.patch_size,
            "processor_class": "HyperLlavaProcessor",
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
        }
        return (
            config
            if legacy_serialization
            else {**config, "image_processor": self.image_processor.to_dict()}
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write a folder that both transformers lines load, with the code that it needs.

        Args:
            save_directory: Folder to write to; made if missing.
            push_to_hub: Whether to push the processor afterwards.
            **kwargs: Arguments of `push_to_hub`, such as `repo_id`.

        Returns:
            Paths of the written files.

        Raises:
            ValueError: If the path is a file.
        """
        folder = Path(save_directory)
        written = save_processor(self, folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return written


def build_processor(
    tokenizer: Any, image_size: int = 336, patch_size: int = 14, **kwargs: Any
) -> HyperLlavaProcessor:
    """Build a processor around a tokenizer, adding the tokens that it lacks.

    Args:
        tokenizer: A fast tokenizer; gets `<image>`, and `<pad>` if it has no padding token.
        image_size: Edge in pixels of what the vision tower sees.
        patch_size: Edge of a patch in pixels.
        **kwargs: Further arguments of `HyperLlavaProcessor`.

    Returns:
        The processor; resize the model's embeddings to `len(processor.tokenizer)`.
    """
    add_missing_tokens(tokenizer, kwargs.get("image_token", "<image>"))
    image_processor = HyperLlavaImageProcessor(size=image_size)
    return HyperLlavaProcessor(image_processor, tokenizer, patch_size=patch_size, **kwargs)
