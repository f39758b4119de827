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

from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .call_arguments_hyperllava import TextArguments, sort_arguments
from .chat_encoding_hyperllava import fit_and_pad, tokenize_chats
from .chat_templates_hyperllava import CHAT_TEMPLATES, VICUNA_V1
from .conversation_calls_hyperllava import ConversationCalls
from .conversations_hyperllava import name_sample
from .image_arrays_hyperllava import image_from_array
from .image_batches_hyperllava import assign_images, load_images
from .image_geometry_hyperllava import pad_to_square_and_resize
from .image_loading_hyperllava import load_rgb_image
from .image_processing_hyperllava import HyperLlavaImageProcessor
from .image_settings_hyperllava import AUTO_MAP
from .labels_hyperllava import build_labels
from .processor_folder_hyperllava import ProcessorFolder
from .rendering_hyperllava import RenderedChat
from .token_rows_hyperllava import check_mark_count, describe_expansions, expand_image_marks
from .tokenizer_files_hyperllava import save_tokenizer
from .tokenizer_parts_hyperllava import add_missing_tokens, find_image_token_id

# Loading a local folder, transformers 4.57 copies only the files that the entry file itself names,
# and then misses those that they name in turn. So every file of the closure is imported here.
_REST_OF_CLOSURE = (
    AUTO_MAP,
    build_labels,
    image_from_array,
    load_rgb_image,
    pad_to_square_and_resize,
    save_tokenizer,
)


class HyperLlavaProcessor(ConversationCalls, ProcessorFolder, ProcessorMixin):
    """Prepare prompts, conversations and images for HyperLLaVA.

    Args:
        image_processor: A `HyperLlavaImageProcessor`.
        tokenizer: A fast tokenizer that has the image token as one token.
        patch_size: Edge of a patch of the vision tower in pixels.
        vision_feature_select_strategy: "default" drops one feature of an image (the CLS), "full"
            keeps all.
        num_additional_image_tokens: Features that the tower adds to its patches (1: CLS).
        image_token: The mark that stands for an image in a prompt.
        chat_template: The template of calls that name no other: "vicuna_v1", "plain" or Jinja
            source; None takes `vicuna_v1`. Of a dict of templates by name, "default" is used.

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
        if not isinstance(patch_size, int) or isinstance(patch_size, bool) or patch_size < 1:
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
        extra = num_additional_image_tokens
        if not isinstance(extra, int) or isinstance(extra, bool) or extra < 0:
            raise ValueError(
                f"num_additional_image_tokens is {extra!r}, expected an integer of at least 0: 1 "
                "for CLIP's class token."
            )
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.image_token = image_token
        if isinstance(chat_template, str):
            chat_template = CHAT_TEMPLATES.get(chat_template, chat_template)
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
        count = 0
        if any(grouped):
            loaded = load_images(grouped, image_settings)
            data = dict(
                self.image_processor.preprocess(loaded, return_tensors="np", **image_settings)
            )
            count = self._count_image_tokens(*data["pixel_values"].shape[-2:])
            rows = [expand_image_marks(row, self.image_token_id, count) for row in rows]
        batch = fit_and_pad(self.tokenizer, rows, arguments, extras, self.image_token_id)
        encoded = BatchFeature(data={**batch, **data}, tensor_type=arguments.return_tensors)
        if arguments.return_text_replacement_offsets:
            # Servers (vLLM) place each image by these.
            encoded["text_replacement_offsets"] = [
                describe_expansions(chat.text, self.image_token, self.image_token * count)
                for chat in chats
            ]
        return encoded

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
