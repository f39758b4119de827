"""A conversation about images, answered by a model as it generates."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

from hyperllava_hf.checkpoints import load_config_dict, resolve_checkpoint
from hyperllava_hf.modeling import HyperLlavaForConditionalGeneration
from hyperllava_hf.processing import HyperLlavaProcessor
from hyperllava_hf.processing.image_loading_hyperllava import load_rgb_image

URL_SCHEMES = ("http://", "https://", "data:")
IMAGE_NAME = re.compile(r"\S+\.(bmp|gif|jpe?g|png|tiff?|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen; a temperature of 0 always takes the likeliest one."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def get_generate_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `generate`."""
        arguments: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        if self.temperature == 0:
            # None silences transformers' warning about sampling values that greedy search ignores.
            return arguments | {
                "do_sample": False,
                "temperature": None,
                "top_p": None,
                "top_k": None,
            }
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return arguments | {"do_sample": True} | sampled


@dataclass(frozen=True)
class Answer:
    """One answer: its text, how many tokens it took, and whether the model ended it itself."""

    text: str
    new_tokens: int
    complete: bool


class CallbackStreamer(TextStreamer):
    """Hand each piece of text to a function as soon as its words are whole.

    The space that many tokenizers put before the first word is left out.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass the text on."""
        text = text if self.started else text.lstrip()
        if text:
            self.started = True
            self.on_text(text)


def is_image_source(word: str) -> bool:
    """Tell whether a word of the command line names an image."""
    return word.startswith(URL_SCHEMES) or Path(word).is_file()


def split_images_and_question(
    words: list[str], question_optional: bool = False
) -> tuple[list[str], str | None]:
    """Split `IMAGE... QUESTION` into its two parts.

    Args:
        words: image files or URLs, then the question.
        question_optional: whether the words may all be images.

    Returns:
        The images and the question; None if there is no question.

    Raises:
        ValueError: if the question is missing, or an image is no file.
    """
    # A name that was mistyped is no question either.
    last_is_image = is_image_source(words[-1]) or IMAGE_NAME.fullmatch(words[-1]) is not None
    images = words if last_is_image else words[:-1]
    for image in images:
        if not is_image_source(image):
            raise ValueError(
                f"found no file {image!r}; expected images, then the question in quotes"
            )
    if last_is_image and not question_optional:
        raise ValueError(
            f"found {len(words)} image(s) and no question; put the question last, in quotes"
        )
    return images, None if last_is_image else words[-1]


def choose_device(name: str) -> str:
    """Turn a device's name into one that this machine has.

    Args:
        name: a torch device, or auto for the fastest there is.

    Returns:
        The name of a torch device.

    Raises:
        ValueError: if the name is no device, or the machine lacks it.
    """
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] * torch.mps.is_available() + ["cpu"]
    if name == "auto":
        return devices[0]
    if name not in devices and not (name == "cuda" and "cuda:0" in devices):
        raise ValueError(f"found no device {name!r}; this machine has {', '.join(devices)}")
    return name


@dataclass
class Chat:
    """A model, its processor, and what has been said so far."""

    model: Any
    processor: Any
    images: list[Image.Image]
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        checkpoint: str | None,
        images: list[str],
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "Chat":
        """Open a conversation about some images.

        Args:
            checkpoint: a folder, a Hub id, or None for the bundled checkpoint.
            images: files or URLs, in the order in which the question speaks of them.
            revision: branch, tag or commit on the Hub.
            device: a torch device, or auto.
            dtype: the name of a torch dtype, or auto for the checkpoint's own.

        Returns:
            The conversation, with nothing said yet.
        """
        # What is quick to check comes before the weights, which can take minutes to load.
        device = choose_device(device)
        pictures = [load_rgb_image(image) for image in images]
        checkpoint = resolve_checkpoint(checkpoint)
        load_config_dict(checkpoint, revision)
        processor = HyperLlavaProcessor.from_pretrained(checkpoint, revision=revision)
        model = HyperLlavaForConditionalGeneration.from_pretrained(
            checkpoint, revision=revision, dtype=dtype, device_map=device
        )
        return cls(model.eval(), processor, pictures)

    def add_question(self, question: str) -> None:
        """Add the user's next words to the conversation; the first ones come after the images."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not self.messages:
            content = [{"type": "image", "image": image} for image in self.images] + content
        self.messages.append({"role": "user", "content": content})

    def build_inputs(self) -> Any:
        """Build the model's inputs from the conversation so far.

        Returns:
            Tensors on the model's device, by the names of `forward`'s arguments.
        """
        return self.processor.apply_chat_template(
            self.messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)

    def ask(
        self, question: str, sampling: Sampling, on_text: Callable[[str], None] = lambda text: None
    ) -> Answer:
        """Ask a question and remember the answer.

        Args:
            question: the user's next words.
            sampling: how tokens are chosen.
            on_text: called with each piece of the answer as it is generated.

        Returns:
            The whole answer.
        """
        self.add_question(question)
        inputs = self.build_inputs()
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        tokenizer = self.processor.tokenizer
        sequence = self.model.generate(
            **inputs,
            **sampling.get_generate_arguments(),
            streamer=CallbackStreamer(tokenizer, on_text),
        )[0]
        new_tokens = sequence[inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new_tokens, skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        ended = len(new_tokens) < sampling.max_new_tokens
        return Answer(
            text, len(new_tokens), ended or int(new_tokens[-1]) in tokenizer.all_special_ids
        )
