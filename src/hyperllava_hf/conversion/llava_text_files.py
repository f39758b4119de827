"""Every file of a folder for other tools that holds no tensor: llava-hf's form, and LLaVA's own."""

import json
import shutil
from pathlib import Path
from typing import Any

from hyperllava_hf.conversion.generation_settings import build_generation_config
from hyperllava_hf.conversion.text_files import write_json

# Settings that transformers' CLIP and LLaVA image processors share with ours.
_IMAGE_SETTINGS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
)


def write_llava_hf_text_files(
    folder: Path, config: dict[str, Any], processor: Any, generation_folder: Path | None = None
) -> list[str]:
    """Write all text files of a llava-hf folder, which transformers loads without remote code.

    The published repositories name CLIP's image processor, which cuts the centre of an image. Where
    this model pads to a square, `LlavaImageProcessor` with `do_pad` is named instead: the same
    pixels as here, which CLIP's could not give.

    Args:
        folder: Folder to write to; made if missing.
        config: What `build_llava_hf_config` returned.
        processor: The model's `HyperLlavaProcessor`.
        generation_folder: Folder whose `generation_config.json` is kept, where it is sane.

    Returns:
        Sentences for the report.
    """
    from hyperllava_hf.processing.tokenizer_files_hyperllava import save_tokenizer

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(processor.tokenizer, folder, "LlavaProcessor")
    write_json(folder / "preprocessor_config.json", _build_image_settings(processor))
    write_json(
        folder / "processor_config.json",
        {
            "image_token": processor.image_token,
            "num_additional_image_tokens": processor.num_additional_image_tokens,
            "patch_size": processor.patch_size,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        },
    )
    template = processor.chat_template
    template = template["default"] if isinstance(template, dict) else template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    generation, notes = build_generation_config(config, generation_folder)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    if processor.image_processor.do_pad:
        notes.append(
            "images are padded to a square (LlavaImageProcessor, do_pad); the published llava-hf "
            "repositories cut the centre"
        )
    return notes


def write_llava_text_files(
    folder: Path,
    config: dict[str, Any],
    tokenizer: Any,
    base_vocab_size: int,
    generation_folder: Path | None = None,
) -> list[str]:
    """Write all text files of an original LLaVA folder.

    The tokens that a conversion added (`<image>`, `<pad>`) are left out: the original splits
    prompts at `<image>` before it tokenises.

    Args:
        folder: Folder to write to; made if missing.
        config: What `build_llava_config` returned.
        tokenizer: The model's fast tokenizer.
        base_vocab_size: Tokens of the vocabulary before conversion added any.
        generation_folder: Folder whose `generation_config.json` is kept, where it is sane.

    Returns:
        Sentences for the report.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    notes = _write_tokenizer(folder, tokenizer, base_vocab_size)
    generation, generation_notes = build_generation_config(config, generation_folder)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    return notes + generation_notes


def _build_image_settings(processor: Any) -> dict[str, Any]:
    ours = processor.image_processor.to_dict()
    settings = {name: ours[name] for name in _IMAGE_SETTINGS}
    kind = "LlavaImageProcessor" if ours["do_pad"] else "CLIPImageProcessor"
    pads = {"do_pad": True} if ours["do_pad"] else {}
    return {
        **settings,
        **pads,
        "image_processor_type": kind,
        "processor_class": "LlavaProcessor",
    }


def _write_tokenizer(folder: Path, tokenizer: Any, base_vocab_size: int) -> list[str]:
    named = {
        name: str(getattr(tokenizer, name))
        for name in ("bos_token", "eos_token", "unk_token")
        if getattr(tokenizer, name)
    }
    # The padding token goes; LLaVA-1.5 as released pads with <unk>.
    pad = named.get("unk_token", named.get("eos_token"))
    write_json(folder / "special_tokens_map.json", {**named, "pad_token": pad})
    settings = {
        **named,
        "add_bos_token": tokenizer("a").input_ids[0] == tokenizer.bos_token_id,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "pad_token": pad,
        "padding_side": "right",
    }
    source = Path(str(tokenizer.name_or_path)) / "tokenizer.model"
    if source.is_file():
        shutil.copyfile(source, folder / "tokenizer.model")
        settings |= {"legacy": False, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
        write_json(folder / "tokenizer_config.json", settings)
        _write_added_tokens(folder, tokenizer, base_vocab_size)
        return []
    content = drop_tokens(tokenizer.backend_tokenizer.to_str(), base_vocab_size)
    write_json(folder / "tokenizer.json", content)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", settings)
    return [
        "there is no tokenizer.model to write, so the folder has a fast tokenizer "
        "(tokenizer.json), which splits text around special tokens in its own way"
    ]


def _write_added_tokens(folder: Path, tokenizer: Any, base_vocab_size: int) -> None:
    """Keep tokens that the source itself had added to its tokenizer.model."""
    from hyperllava_hf.conversion.sentencepiece_models import load_sentencepiece_model

    num_pieces = len(load_sentencepiece_model(folder / "tokenizer.model").pieces)
    vocabulary = tokenizer.get_vocab()
    added = {
        token: number
        for token, number in vocabulary.items()
        if num_pieces <= number < base_vocab_size
    }
    if added:
        write_json(folder / "added_tokens.json", added)


def drop_tokens(tokenizer_json: str, num_tokens: int) -> dict[str, Any]:
    """Leave out the last tokens of a tokenizer.

    Args:
        tokenizer_json: Content of a tokenizer.json.
        num_tokens: How many tokens stay.

    Returns:
        The content without the others, and without padding and truncation.
    """
    content: dict[str, Any] = json.loads(tokenizer_json)
    kept = [token for token in content["added_tokens"] if token["id"] < num_tokens]
    content |= {"added_tokens": kept, "padding": None, "truncation": None}
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {
            token: number for token, number in vocabulary.items() if number < num_tokens
        }
    return content
