"""Every file of a converted HyperLLaVA that holds no tensor: configuration, processor, code."""

import json
from pathlib import Path
from typing import Any

from hyperllava_hf.conversion.generation_settings import build_generation_config

from ..json_files import load_optional_json
from ..shipped_code import load_shipped_code

# What the published llava-hf template makes of one question about one image: LLaVA's v1 format
# without its system sentence and without marks for labels.
_PUBLISHED_FORM = "USER: <image>\nQ ASSISTANT:"
_QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]


def build_converted_processor(
    config: dict[str, Any],
    tokenizer: Any,
    processor_folder: Path | None = None,
    image_aspect_ratio: str | None = None,
) -> tuple[Any, list[str]]:
    """Build the processor of a converted model, keeping what the source says about images.

    Args:
        config: Fields of the converted `config.json`, in transformers' form.
        tokenizer: The source's tokenizer, with the tokens that LLaVA needs.
        processor_folder: Folder whose processor settings are kept: a llava-hf or HyperLLaVA source,
            else the vision tower's; None takes LLaVA-1.5's.
        image_aspect_ratio: An original LLaVA's setting: "pad" and "anyres" pad to a square, any
            other cuts the centre. None keeps what the folder says.

    Returns:
        The `HyperLlavaProcessor`, and sentences for the report.

    Raises:
        ValueError: If the settings contradict the vision tower or each other.
    """
    from hyperllava_hf.processing import HyperLlavaProcessor

    vision = config["vision_config"]
    image_processor, notes = _build_image_processor(vision, processor_folder, image_aspect_ratio)
    template, template_notes = _choose_chat_template(tokenizer, processor_folder)
    processor = HyperLlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=config["vision_feature_select_strategy"],
        chat_template=template,
    )
    return processor, notes + template_notes


def write_hyperllava_text_files(
    folder: Path, config: dict[str, Any], processor: Any, generation_folder: Path | None = None
) -> list[str]:
    """Write all text files of a HyperLLaVA folder, so that with its weights it loads by itself.

    Args:
        folder: Folder to write to; made if missing.
        config: What `build_hyperllava_config` returned.
        processor: What `build_converted_processor` returned.
        generation_folder: Folder whose `generation_config.json` is kept, where it is sane.

    Returns:
        Sentences for the report.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    for name, content in load_shipped_code().items():
        (folder / name).write_bytes(content)
    generation, notes = build_generation_config(config, generation_folder)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    return notes


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one form, so that equal content has equal bytes.

    Args:
        path: File to write.
        content: Plain values.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
    Path(path).write_text(text, encoding="utf-8")


def _build_image_processor(
    vision: dict[str, Any], folder: Path | None, image_aspect_ratio: str | None
) -> tuple[Any, list[str]]:
    from hyperllava_hf.processing import HyperLlavaImageProcessor

    settings = _read_image_settings(folder)
    notes = []
    if image_aspect_ratio is not None:
        pads = image_aspect_ratio == "pad" or "anyres" in image_aspect_ratio
        settings = {**settings, "do_pad": pads}
    elif settings and "do_pad" not in settings:
        # As `HyperLlavaImageProcessor.from_dict` decides, but said in the report.
        settings = {**settings, "do_pad": True}
        notes.append(
            f"the source {'crops' if settings.get('do_center_crop') else 'names no way for'} "
            "images that are not square; the result pads them to a square, as LLaVA-1.5 was "
            "trained (do_pad in preprocessor_config.json)"
        )
    edge = vision["image_size"]
    image_processor: Any = HyperLlavaImageProcessor.from_dict(
        {"size": edge, "image_processor_type": "HyperLlavaImageProcessor", **settings}
    )
    if image_processor.output_size() != (edge, edge):
        height, width = image_processor.output_size()
        raise ValueError(
            f"the image settings of {folder} give images of {height} x {width} pixels, but the "
            f"vision tower takes {edge} x {edge}. Correct crop_size in preprocessor_config.json."
        )
    return image_processor, notes


def _read_image_settings(folder: Path | None) -> dict[str, Any]:
    """Read the image settings, which transformers 5 nests in processor_config.json."""
    if folder is None:
        return {}
    nested = load_optional_json(Path(folder) / "processor_config.json").get("image_processor")
    return nested or load_optional_json(Path(folder) / "preprocessor_config.json")


def _choose_chat_template(
    tokenizer: Any, folder: Path | None
) -> tuple[str | dict[str, str] | None, list[str]]:
    """Keep a source's template, unless it is the published llava-hf one.

    That one lacks the system sentence that LLaVA was trained with.
    """
    templates = {} if folder is None else _read_chat_templates(Path(folder))
    default = templates.get("default")
    if default is None:
        return None, []
    try:
        rendered = tokenizer.apply_chat_template(
            _QUESTION, chat_template=default, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # whatever a template raises on this question: then it is not that one
        rendered = ""
    if rendered.strip() == _PUBLISHED_FORM:
        note = (
            "the source's chat template has no system sentence; the written one is LLaVA-1.5's "
            "own format with it (vicuna_v1)"
        )
        return None, [note]
    return (default if len(templates) == 1 else templates), []


def _read_chat_templates(folder: Path) -> dict[str, str]:
    """Read templates by name, from whichever of the files in use holds them."""
    found: dict[str, str] = {}
    old = load_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(old, str):
        found["default"] = old
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found
