"""Write a processor's folder: code, tokenizer, settings in both forms, chat templates."""

import json
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from .tokenizer_files_hyperllava import save_tokenizer


def save_processor(processor: Any, folder: Path) -> list[str]:
    """Write all files of a processor.

    transformers 5 reads the image settings inside processor_config.json, 4.57 reads them from
    preprocessor_config.json; both files are written, with the same settings.

    Args:
        processor: A `HyperLlavaProcessor`.
        folder: Folder to write to; made if missing.

    Returns:
        Paths of the written files.

    Raises:
        ValueError: If the path is a file, or a chat template's name cannot be a file's.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder to write to. Choose another path.")
    folder.mkdir(parents=True, exist_ok=True)
    name = type(processor).__name__
    written = [str(path) for path in custom_object_save(processor, folder) or []]
    written += save_tokenizer(processor.tokenizer, folder, name)
    config = processor.to_dict()
    image_config = {**config["image_processor"], "processor_class": name}
    written.append(_write_json(folder / "preprocessor_config.json", image_config))
    written.append(_write_json(folder / "processor_config.json", config))
    own = processor.chat_template
    templates = own if isinstance(own, dict) else {"default": own}
    return written + [_write_template(folder, key, template) for key, template in templates.items()]


def _write_template(folder: Path, name: str, template: str) -> str:
    """`vicuna_v1` and `plain` are in the code and get no file; a user's further templates do."""
    target = folder / "chat_template.jinja"
    if name != "default":
        if not name.replace("-", "_").isidentifier():
            raise ValueError(
                f"the chat template name {name!r} is no file name. Use letters, digits and "
                "underscores."
            )
        target = folder / "additional_chat_templates" / f"{name}.jinja"
        target.parent.mkdir(exist_ok=True)
    target.write_text(template, encoding="utf-8")
    return str(target)


def _write_json(path: Path, content: dict[str, Any]) -> str:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return str(path)
