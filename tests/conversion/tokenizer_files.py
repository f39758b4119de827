"""Tokenizers as LLaVA checkpoints carry them: Vicuna's SentencePiece model, and a fast one.

Trained on a few sentences in milliseconds; byte fallback and Llama's three special tokens as in
the original, so that a conversion meets what it meets in a real folder.
"""

import functools
import io
import json

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from tests.conversion.tiny_llava import IMAGE, PAD, VOCABULARY

SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is shown in this image? ASSISTANT: It shows a red 7 and two green 3s.",
    "How many digits are there? There are four of them, and none is blue.",
    "Describe the picture in one or two words: quiet lake, jazz band, fox, view, king, quilt.",
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SETTINGS = {
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 2048,
    "padding_side": "right",
    "tokenizer_class": "LlamaTokenizer",
}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@functools.cache
def train_sentencepiece(num_pieces=VOCABULARY):
    """The bytes of a tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        vocab_size=num_pieces,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def write_sentencepiece(folder, num_pieces=VOCABULARY, added=()):
    """Vicuna's kind of folder: tokenizer.model and three JSON files; <unk> pads."""
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(num_pieces))
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens = {
        name: {"__type": "AddedToken", "content": token, **flags}
        for name, token in SPECIALS.items()
    }
    settings = {**SETTINGS, "legacy": False, "pad_token": None, "sp_model_kwargs": {}, **tokens}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {**SPECIALS, "pad_token": "<unk>"})
    if added:
        numbered = {token: num_pieces + number for number, token in enumerate(added)}
        write_json(folder / "added_tokens.json", numbered)


@functools.cache
def read_pieces(num_pieces=VOCABULARY):
    """The pieces in order, and the merges that rebuild them (best piece first)."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(num_pieces))
    pieces = [processor.id_to_piece(number) for number in range(num_pieces)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for number, piece in enumerate(pieces):
        if processor.is_byte(number) or processor.is_control(number):
            continue
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(processor.get_score(number), pair) for pair in known]
    merges.sort(key=lambda scored: -scored[0])
    return vocabulary, [pair for _, pair in merges]


def build_fast_tokenizer(num_pieces=VOCABULARY):
    """The same pieces in the tokenizers library, as Llama's tokenizer.json has them."""
    vocabulary, merges = read_pieces(num_pieces)
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in SPECIALS.values()]
    )
    return tokenizer


def write_fast(folder, num_pieces=VOCABULARY, with_image=False):
    """tokenizer.json; with_image: llava-hf's, which has <image> and <pad> already."""
    tokenizer = build_fast_tokenizer(num_pieces)
    settings = {**SETTINGS, **SPECIALS}
    if with_image:
        added = [AddedToken(token, normalized=False) for token in ("<image>", "<pad>")]
        tokenizer.add_special_tokens(added)
        assert [tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")] == [IMAGE, PAD]
        settings |= {"pad_token": "<pad>", "image_token": "<image>", "padding_side": "left"}
        settings["extra_special_tokens"] = {"image_token": "<image>"}
        settings["processor_class"] = "LlavaProcessor"
        write_json(folder / "added_tokens.json", {"<image>": IMAGE, "<pad>": PAD})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    special = {**SPECIALS, **({"pad_token": "<pad>"} if with_image else {})}
    write_json(folder / "special_tokens_map.json", special)
