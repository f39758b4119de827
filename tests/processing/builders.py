"""Small tokenizers and processors for the tests of this folder."""

import re
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hyperllava_hf.processing import HyperLlavaProcessor, build_processor

# A word with the space before it is one token, as in Llama's vocabulary.
WORDS = [
    *("Be", " brief", ".", " USER", "USER", ":", " ", "\n", "What", "?", " ASSISTANT", " red"),
    *(" 7", " Why", " so", " What", " A", " green", " 3", "A", " and", "Why"),
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def build_word_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """One id a word; 0 <unk>, 1 <s>, 2 </s>, then `WORDS` from 3."""
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words = Regex(r" ?[A-Za-z0-9]+|[^A-Za-z0-9]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _finish(tokenizer, **kwargs)


def build_metaspace_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """Llama's kind today: BPE, byte fallback, a metaspace pre-tokenizer."""
    tokenizer = Tokenizer(_build_llama_model())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    return _finish_llama(tokenizer, **kwargs)


def build_legacy_llama_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """Vicuna's kind: BPE over the whole text, a space put before each stretch of it."""
    tokenizer = Tokenizer(_build_llama_model())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return _finish_llama(tokenizer, **kwargs)


def build_byte_level_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """GPT-2's kind: offsets of a word leave out the space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer, **kwargs)


def _build_llama_model() -> models.BPE:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [chr(code) for code in range(33, 127)]
    merges = [("\u2581", "A"), ("S", "S"), ("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    tokens += [left + right for left, right in merges]
    vocab = {token: index for index, token in enumerate(tokens)}
    return models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )


def _finish_llama(tokenizer: Tokenizer, **kwargs: Any) -> PreTrainedTokenizerFast:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return _finish(tokenizer, **kwargs)


def _finish(tokenizer: Tokenizer, **kwargs: Any) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS, **kwargs)


TOKENIZERS = {
    "words": build_word_tokenizer,
    "metaspace": build_metaspace_tokenizer,
    "legacy_llama": build_legacy_llama_tokenizer,
    "byte_level": build_byte_level_tokenizer,
}


def build_small_processor(kind: str = "words", **kwargs: Any) -> HyperLlavaProcessor:
    """Four tokens an image: 28 pixels, patches of 14. With "words", <image> is 25 and <pad> 26."""
    return build_processor(TOKENIZERS[kind](), image_size=28, patch_size=14, **kwargs)


def build_image(width: int = 30, height: int = 20, seed: int = 0) -> Image.Image:
    """An image of noise over a gradient, so that every geometry fault shows."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    ramp = np.linspace(0, 127, width)[None, :, None] * np.array([1.0, 0.5, 0.25])
    return Image.fromarray((noise + ramp).astype(np.uint8))


def ask(text: str, *images: Any) -> dict[str, Any]:
    """A user's message."""
    return {
        "role": "user",
        "content": [{"type": "image", "image": image} for image in images]
        + [{"type": "text", "text": text}],
    }


def answer(text: str) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def escape(*parts: str) -> str:
    """A pattern in which the parts occur in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)
