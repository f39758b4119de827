"""Write a tokenizer so that transformers 4.57 and 5 read the same tokenizer from it.

The lines disagree on names, not on the tokenizer: 5 writes a class (`TokenizersBackend`) and a list
of extra special tokens that 4.57 cannot read, and both rebuild Llama tokenizers from their class
name rather than from the saved pipeline. `tokenizer.json` alone says how text becomes ids, so the
configuration written here names the one class that both lines load straight from it, and holds the
same bytes whichever line wrote it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Files in which one line repeats what tokenizer.json says, in its own dialect.
_DIALECTS = ("special_tokens_map.json", "added_tokens.json")


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike, processor_class: str) -> list[str]:
    """Save a fast tokenizer in the form that both transformers lines read alike.

    Args:
        tokenizer: A tokenizer backed by the `tokenizers` library.
        folder: Existing folder to write to.
        processor_class: Name of the processor's class, for `AutoProcessor`.

    Returns:
        Paths of the written files.
    """
    folder = Path(folder)
    # Padding and truncation of the last call would otherwise be saved as the tokenizer's own.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = _build_config(tokenizer, processor_class)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    for name in _DIALECTS:
        (folder / name).unlink(missing_ok=True)
    written = [str(folder / "tokenizer.json"), str(folder / "tokenizer_config.json")]
    model_file = _find_sentencepiece_model(tokenizer)
    if model_file is not None:
        target = folder / "tokenizer.model"
        if not target.exists() or not target.samefile(model_file):
            shutil.copyfile(model_file, target)
        written.append(str(target))
    return written


def _build_config(tokenizer: Any, processor_class: str) -> dict[str, Any]:
    named = {
        name: str(getattr(tokenizer, name))
        for name in _NAMED_TOKENS
        if getattr(tokenizer, name, None)
    }
    others = [token for token in tokenizer.all_special_tokens if token not in named.values()]
    config = {
        **named,
        "additional_special_tokens": [str(token) for token in others],
        "clean_up_tokenization_spaces": bool(
            getattr(tokenizer, "clean_up_tokenization_spaces", False)
        ),
        # Not token_type_ids: `generate` refuses inputs that the model does not take.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "processor_class": processor_class,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": tokenizer.truncation_side,
    }
    return config


def _find_sentencepiece_model(tokenizer: Any) -> str | None:
    """Find the tokenizer.model that the tokenizer came with, to keep it with the checkpoint."""
    vocab_file = getattr(tokenizer, "vocab_file", None)
    if vocab_file and str(vocab_file).endswith(".model") and os.path.isfile(vocab_file):
        return str(vocab_file)
    source = getattr(tokenizer, "name_or_path", None)
    if not source:
        return None
    if os.path.isdir(source):
        candidate = os.path.join(source, "tokenizer.model")
        return candidate if os.path.isfile(candidate) else None
    try:
        return cached_file(
            source,
            "tokenizer.model",
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError):
        return None
