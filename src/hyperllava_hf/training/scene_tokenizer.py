"""The tokenizer of the bundled checkpoint: a small byte-level BPE, trained on the scene language.

Any text can be encoded, since every byte is a token; the words of scenes, their questions and the
system sentence are one token each. A digit is never merged with anything but the space before
it, so that "3s" is the token that "3" is, and a plural. The ids follow Llama's: `<unk>` 0,
`<s>` 1, `</s>` 2, then bytes and words, then `<image>` and `<pad>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ..evaluation.digit_questions import (
    FORMS,
    NUM_PHRASINGS,
    describe_scene,
    sample_balanced_fact,
    word_fact,
)

SYSTEM_SENTENCE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VOCAB_SIZE = 512
MAX_LENGTH = 1024
NUM_TRAINING_SCENES = 200

# A digit alone, a word, punctuation, or white space; the first three with the space before them.
_PIECE = r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"


def list_tokenizer_texts() -> Iterator[str]:
    """List the text that the tokenizer is trained on: the words of the scene language.

    Yields:
        The system sentence with the roles' names, then questions, answers and descriptions.
    """
    for _ in range(NUM_TRAINING_SCENES):
        yield f"{SYSTEM_SENTENCE} USER: none none"
    for form in (form for forms in FORMS.values() for form in forms):
        for seed in range(NUM_TRAINING_SCENES):
            scene, fact = sample_balanced_fact(seed, "train", form)
            question = word_fact(fact, seed % NUM_PHRASINGS)
            yield f"{question.question} ASSISTANT: {question.answer}"
            yield describe_scene(scene)


def build_scene_tokenizer(texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same texts always give the same one.

    Args:
        texts: What to train on; `list_tokenizer_texts` when None.

    Returns:
        A tokenizer of at most `VOCAB_SIZE` tokens, which prepends `<s>` and pads on the left.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        min_frequency=2,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(list_tokenizer_texts() if texts is None else texts, trainer)
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<image>", "<pad>")]
    )
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
