"""The tokenizer of a source: read as it stands, so that both transformers lines give its ids.

transformers' auto classes rebuild Llama tokenizers from their class name, each line in its own way.
Here `tokenizer.json` is taken literally, and `tokenizer.model` through one conversion; no class
that a folder names is imported, so no code of a folder runs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hyperllava_hf.conversion.sentencepiece_models import (
    build_fast_tokenizer,
    load_sentencepiece_model,
    put_first,
)

from ..json_files import load_optional_json

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# Vocabularies are padded to a multiple of 64, 128 or 256 rows; a wider gap is a wrong tokenizer.
_MAX_SPARE_ROWS = 1024


def load_source_tokenizer(
    folders: Sequence[Path], vocab_rows: int, prefer_sentencepiece: bool = False
) -> Any:
    """Load the tokenizer of the first folder that has one.

    Args:
        folders: Where to look, in this order: the source, then its base.
        vocab_rows: Rows of the source's embeddings.
        prefer_sentencepiece: Whether tokenizer.model wins over a tokenizer.json beside it, as in
            original LLaVA's code, which always loads the slow tokenizer.

    Returns:
        A `PreTrainedTokenizerFast`, without the tokens that conversion adds.

    Raises:
        ValueError: If there is no tokenizer, it cannot be read, or it is not that of these weights.
    """
    names = ["tokenizer.json", "tokenizer.model"]
    if prefer_sentencepiece:
        names.reverse()
    for folder in map(Path, folders):
        for name in names:
            if (folder / name).is_file():
                tokenizer = _load_tokenizer(folder, name)
                _check_size(tokenizer, vocab_rows, folder / name)
                return tokenizer
    raise ValueError(
        f"found no tokenizer in {', '.join(map(str, folders))}, expected tokenizer.json or "
        "tokenizer.model. Copy it from the language model that the checkpoint was trained from, or "
        "pass that model with --base-llm."
    )


def add_llava_tokens(tokenizer: Any) -> tuple[int, int]:
    """Add what LLaVA's prompts need: `<image>`, and a padding token of its own.

    A tokenizer that has `<image>` has been through a conversion, and keeps its padding token.
    Others pad with `<unk>`, as Vicuna's, and get `<pad>`.

    Args:
        tokenizer: What `load_source_tokenizer` returned; changed in place.

    Returns:
        Ids of the image token and of the padding token.
    """
    known = IMAGE_TOKEN in tokenizer.get_vocab()
    if not known:
        image = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
        others = [
            token for token in tokenizer.all_special_tokens if token not in _values(tokenizer)
        ]
        tokenizer.add_special_tokens({"additional_special_tokens": [*others, image]})
    shared = (None, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)
    if tokenizer.pad_token is None or (not known and tokenizer.pad_token in shared):
        pad = AddedToken(PAD_TOKEN, normalized=False, special=True)
        tokenizer.add_special_tokens({"pad_token": pad})
    return tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), tokenizer.pad_token_id


def _values(tokenizer: Any) -> list[str | None]:
    return [getattr(tokenizer, name) for name in _NAMED]


def _load_tokenizer(folder: Path, name: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    config = load_optional_json(folder / "tokenizer_config.json")
    named = _read_named_tokens(folder, config)
    if name == "tokenizer.model":
        model = load_sentencepiece_model(folder / name)
        backend = build_fast_tokenizer(model, folder / name)
        for key in ("bos", "eos", "unk", "pad"):
            if model.ids[key] >= 0:
                named.setdefault(f"{key}_token", model.pieces[model.ids[key]].text)
        if config.get("add_bos_token") is False:
            backend.post_processor = None
        _add_stated_tokens(backend, folder, config, named)
    else:
        backend = _read_tokenizer_json(folder / name)
        _restore_bos(backend, config, named.get("bos_token"))
    others = [
        token.content
        for _, token in sorted(backend.get_added_tokens_decoder().items())
        if token.special and token.content not in named.values()
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=others,
        clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        model_max_length=_read_length_limit(folder, config),
        name_or_path=str(folder),
        padding_side="left",
        **{key: token for key, token in named.items() if backend.token_to_id(token) is not None},
    )


def _read_length_limit(folder: Path, config: dict[str, Any]) -> int:
    limit = config.get("model_max_length") or int(1e30)
    # transformers itself writes 1e30 where there is no limit.
    if not isinstance(limit, int | float) or limit < 1:
        raise ValueError(
            f"model_max_length in {folder / 'tokenizer_config.json'} is {limit!r}; expected a "
            "number of tokens. Correct it, or leave it out."
        )
    return int(limit)


def _read_tokenizer_json(path: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong
        raise ValueError(
            f"{path} is no tokenizer that can be read ({error}). Get it again."
        ) from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _read_named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Read which tokens begin, end and pad; each may be a text or a description of a token."""
    beside = load_optional_json(folder / "special_tokens_map.json")
    named = {}
    for name in _NAMED:
        token = config.get(name) or beside.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            named[name] = str(token)
    return named


def _restore_bos(backend: Tokenizer, config: dict[str, Any], bos: str | None) -> None:
    """Put the first token back where a tokenizer.json leaves it to its Llama class."""
    wanted = config.get("add_bos_token")
    if wanted is None:
        wanted = str(config.get("tokenizer_class")).startswith("Llama")
    bos_id = backend.token_to_id(bos) if bos else None
    if wanted and bos_id is not None and bos_id not in backend.encode("a").ids:
        put_first(backend, bos_id)


def _stated_tokens(folder: Path, config: dict[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Walk over the tokens that a slow tokenizer's folder adds to its model, by id."""
    found: dict[int, AddedToken] = {}
    for text, number in load_optional_json(folder / "added_tokens.json").items():
        found[int(number)] = AddedToken(text, normalized=False, special=False)
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word")}
        special = bool(entry.get("special"))
        # A space would otherwise be put before the token itself, and it would not be found.
        found[int(number)] = AddedToken(
            entry["content"], normalized=False, special=special, **flags
        )
    yield from sorted(found.items())


def _add_stated_tokens(
    backend: Tokenizer, folder: Path, config: dict[str, Any], named: dict[str, str]
) -> None:
    for number, token in _stated_tokens(folder, config):
        if token.content in named.values():
            token.special = True
        known = backend.token_to_id(token.content)
        if (known if known is not None else backend.get_vocab_size()) != number:
            raise ValueError(
                f"{folder} adds the token {token.content!r} with id {number}, but tokenizer.model "
                f"has {backend.get_vocab_size()} tokens and "
                f"{'no such token' if known is None else f'this one with id {known}'}. Copy the "
                "tokenizer files from the model that the checkpoint was trained from."
            )
        add = backend.add_special_tokens if token.special else backend.add_tokens
        add([token])


def _check_size(tokenizer: Any, vocab_rows: int, path: Path) -> None:
    num_tokens = len(tokenizer)
    if num_tokens > vocab_rows or vocab_rows - num_tokens > _MAX_SPARE_ROWS:
        relation = "more tokens than" if num_tokens > vocab_rows else "far fewer tokens than"
        raise ValueError(
            f"{path} has {num_tokens} tokens, {relation} the embeddings have rows ({vocab_rows}); "
            "expected the tokenizer that the weights were trained with. Copy its files into the "
            "source's folder."
        )
