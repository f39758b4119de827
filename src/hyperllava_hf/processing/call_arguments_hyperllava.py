"""Sort the keyword arguments of a processor call into those for text and those for images.

Both transformers lines let a caller write `processor(..., padding=True)`, `text_kwargs={"padding":
True}` or `common_kwargs={...}`; they differ in how unknown names are treated. Here both are
accepted alike, and a name that nothing reads is said once instead of being dropped in silence.
"""

from dataclasses import dataclass, fields
from typing import Any

from transformers.utils import logging

from .image_settings_hyperllava import SETTINGS

logger = logging.get_logger(__name__)

IMAGE_ARGUMENTS = frozenset((*SETTINGS, "input_data_format"))
# Sent along by callers that treat all processors alike; at these values they ask for nothing.
_WITHOUT_EFFECT = frozenset(
    (
        "videos_kwargs",
        "audio_kwargs",
        "return_metadata",
        "use_fast",
        "device",
        "verbose",
        "data_format",
        "stride",
        "return_overflowing_tokens",
        "is_split_into_words",
        "return_length",
        "text_pair",
    )
)
# What transformers' tokenizers take; a row is one text, so that all of them but the last cut it.
TRUNCATIONS = (True, False, "longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass
class TextArguments:
    """What a call may ask of the text side, by the names of transformers' tokenizers.

    Attributes:
        padding: True or "longest", "max_length", False.
        padding_side: "left", "right", or None for the processor's own choice.
        pad_to_multiple_of: Round the padded length up.
        truncation: Whether to cut text that is too long.
        max_length: Longest row; None takes the tokenizer's model_max_length.
        add_special_tokens: Whether the tokenizer adds its BOS.
        return_attention_mask: Whether to return `attention_mask`; None means yes.
        return_token_type_ids: Whether to return `token_type_ids` (all 0).
        return_mm_token_type_ids: Whether to return `mm_token_type_ids` (1 on image tokens).
        return_offsets_mapping: Whether to return the character range of each token in the given
            text.
        return_special_tokens_mask: Whether to return the tokenizer's special tokens mask.
        return_text_replacement_offsets: Whether to return `text_replacement_offsets`, what each
            image mark of the given text became.
        return_tensors: "pt", "np" or None.
    """

    padding: Any = False
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    truncation: Any = False
    max_length: int | None = None
    add_special_tokens: bool = True
    return_attention_mask: bool | None = None
    return_token_type_ids: bool | None = None
    return_mm_token_type_ids: bool = False
    return_offsets_mapping: bool = False
    return_special_tokens_mask: bool = False
    return_text_replacement_offsets: bool = False
    return_tensors: Any = None

    @property
    def truncates(self) -> bool:
        """Whether truncation was asked for under any of transformers' names."""
        name = getattr(self.truncation, "value", self.truncation)
        return name not in (False, None, "do_not_truncate")

    def raise_if_invalid(self) -> None:
        """Check what a tokenizer would refuse, since rows are cut here.

        Raises:
            ValueError: If truncation is of no known kind, or max_length no length.
        """
        name = getattr(self.truncation, "value", self.truncation)
        if name not in (None, *TRUNCATIONS):
            raise ValueError(
                f"truncation: found {self.truncation!r}, expected one of "
                f"{', '.join(map(repr, TRUNCATIONS))}."
            )
        length = self.max_length
        if length is not None and not (isinstance(length, int) and length >= 1):
            raise ValueError(f"max_length: found {length!r}, expected an integer of at least 1.")


TEXT_ARGUMENTS = frozenset(field.name for field in fields(TextArguments))
CALL_ARGUMENTS = (
    TEXT_ARGUMENTS
    | IMAGE_ARGUMENTS
    | _WITHOUT_EFFECT
    | {"text_kwargs", "images_kwargs", "common_kwargs"}
)


def sort_arguments(arguments: dict[str, Any]) -> tuple[TextArguments, dict[str, Any]]:
    """Sort keyword arguments of a call.

    Args:
        arguments: Keywords as the caller gave them, flat or nested by modality.

    Returns:
        The arguments for the text and the settings for the images.

    Raises:
        ValueError: If a name is given twice with different values, or a value is none that it
            can have.
    """
    arguments = dict(arguments)
    common = arguments.pop("common_kwargs", None) or {}
    nested_text = arguments.pop("text_kwargs", None) or {}
    nested_images = arguments.pop("images_kwargs", None) or {}
    text: dict[str, Any] = {}
    images: dict[str, Any] = {}
    unknown = []
    for name, value in {**common, **arguments}.items():
        if name in TEXT_ARGUMENTS:
            text[name] = value
        elif name in IMAGE_ARGUMENTS:
            images[name] = value
        elif name not in _WITHOUT_EFFECT:
            unknown.append(name)
    for nested, flat, known in (
        (nested_text, text, TEXT_ARGUMENTS),
        (nested_images, images, IMAGE_ARGUMENTS),
    ):
        for name, value in nested.items():
            if name in flat and flat[name] != value:
                raise ValueError(
                    f"{name} was passed twice, as {flat[name]!r} and inside a dict of its modality "
                    f"as {value!r}; expected one. Remove either."
                )
            if name in known:
                flat[name] = value
            elif name not in _WITHOUT_EFFECT and name != "return_tensors":
                unknown.append(name)
    if unknown:
        logger.warning_once(f"HyperLlavaProcessor ignores {', '.join(sorted(unknown))}.")
    sorted_text = TextArguments(**text)
    sorted_text.raise_if_invalid()
    return sorted_text, images
