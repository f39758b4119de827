r"""A sentencepiece `tokenizer.model` as a fast tokenizer, alike on both transformers lines.

The file is a protocol buffer of which few fields matter; they are read here, so neither
sentencepiece nor protobuf has to be installed. The tokenizer is Llama's as the llava-hf
repositories publish it: a space is put before *every* stretch of text between special tokens.

    text        USER: <image>\nWhat</s>USER:
    pieces      <s> _USER : _ <image> _ <0x0A> What </s> _USER :          (_ is U+2581)

Original LLaVA tokenises the stretches around `<image>` one by one, which gives the same tokens. A
turn after `</s>` differs in one place: with `legacy: false` the original writes `USER` there and
this `_USER`, as llava-hf does. transformers 5 by itself would also leave out the space after
`<image>`, and 4.57 would not; the pipeline is therefore written out and loaded as it stands.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

SPACE = "\u2581"
# Numbers of sentencepiece_model.proto, which is fixed for good.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PAIR_ENCODING = 2
_MODEL_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}


class Piece(NamedTuple):
    """One row of a sentencepiece vocabulary.

    Attributes:
        text: the piece.
        score: its merge priority; higher merges earlier.
        kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE.
    """

    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """What a tokenizer.model says about how text becomes ids.

    Attributes:
        pieces: the vocabulary, in the order of ids.
        kind: number of the algorithm; 2 is BPE.
        charsmap: compiled rules of character normalisation; empty for the identity.
        adds_prefix: whether a space is put before the text.
        removes_extra_spaces: whether runs of spaces become one and outer ones are dropped.
        ids: ids of "unk", "bos", "eos" and "pad"; -1 where there is none.
    """

    pieces: list[Piece]
    kind: int
    charsmap: bytes
    adds_prefix: bool
    removes_extra_spaces: bool
    ids: dict[str, int]


def load_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If the file is truncated or no sentencepiece model.
    """
    try:
        model = _parse_model(Path(path).read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(
            f"{path} is no sentencepiece model ({error}), expected the tokenizer.model of a Llama. "
            "Get it again, or put a tokenizer.json beside the checkpoint."
        ) from error
    return model


def build_fast_tokenizer(model: SentencePieceModel, path: Path) -> Tokenizer:
    """Build the fast tokenizer that gives the ids of a sentencepiece model.

    Args:
        model: What `load_sentencepiece_model` returned.
        path: Its file, for messages to the user.

    Returns:
        The tokenizer, with the beginning-of-sequence token put first.

    Raises:
        ValueError: If the model is no BPE.
    """
    if model.kind != BYTE_PAIR_ENCODING:
        raise ValueError(
            f"{path} is a sentencepiece model of kind {_MODEL_KINDS.get(model.kind, model.kind)}, "
            "expected BPE, as Llama's. Put the tokenizer.json of this language model beside it."
        )
    unknown = model.pieces[model.ids["unk"]].text
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece.text: index for index, piece in enumerate(model.pieces)},
            merges=_list_merges(model.pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(piece.kind == BYTE for piece in model.pieces),
        )
    )
    tokenizer.normalizer = _build_normalizer(model)
    strip = [decoders.Strip(" ", 1, 0)] if model.adds_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    kinds = (UNKNOWN, CONTROL, USER_DEFINED)
    for piece in model.pieces:
        if piece.kind in kinds:
            special = piece.kind != USER_DEFINED
            tokenizer.add_tokens([AddedToken(piece.text, normalized=False, special=special)])
    put_first(tokenizer, model.ids["bos"])
    return tokenizer


def put_first(tokenizer: Tokenizer, bos_id: int) -> None:
    """Let every encoded text begin with one token.

    Args:
        tokenizer: Changed in place.
        bos_id: The id; -1 for none.
    """
    bos = tokenizer.id_to_token(bos_id) if bos_id >= 0 else None
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, bos_id)],
        )


def _build_normalizer(model: SentencePieceModel) -> Any:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.removes_extra_spaces:
        # Spaces only: other white space is text.
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" +"), " "),
        ]
    if model.adds_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _list_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """List every pair that makes a piece, pieces of high score first.

    sentencepiece merges whichever neighbours make the best piece, however that piece came about, so
    each way of cutting a piece in two is a merge.
    """
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind == NORMAL}
    ranked = []
    for text, index in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                ranked.append((-pieces[index].score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_parse_piece(value))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not (pieces and trainer and normalizer):
        # These stand at the end of the file, and their defaults are not Llama's.
        raise ValueError("it lacks its pieces or its settings")
    numbers = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    return SentencePieceModel(
        pieces,
        int(trainer.get(3, 1)),
        normalizer.get(2, b""),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        {name: _signed(trainer.get(field, default)) for name, (field, default) in numbers.items()},
    )


def _parse_piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
    return Piece(
        fields[1].decode("utf-8") if 1 in fields else "", score, int(fields.get(3, NORMAL))
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Walk over a message: varints come as int, everything else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"it ends at byte {len(data)}, in the middle of a field")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number at byte {position} does not end")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
