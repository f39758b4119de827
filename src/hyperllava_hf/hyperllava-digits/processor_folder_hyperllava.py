"""A processor's folder: how it is read, and how it is written for both transformers lines."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.dynamic_module_utils import custom_object_save

from .image_processing_hyperllava import HyperLlavaImageProcessor
from .image_settings_hyperllava import AUTO_MAP, SETTINGS
from .tokenizer_files_hyperllava import save_tokenizer

# Where the settings of images stand: as 4.57 reads them, and as 5 does.
SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")


class ProcessorFolder:
    """The part of `HyperLlavaProcessor` that loads and saves."""

    attributes: list[str]
    image_processor: Any
    tokenizer: Any
    chat_template: Any
    image_token: str
    patch_size: int
    num_additional_image_tokens: int
    vision_feature_select_strategy: str
    push_to_hub: Any

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        processor_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Load the parts; the image processor is always ours, whatever class the folder names."""
        raise_if_settings_differ(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        image_processor = HyperLlavaImageProcessor.from_pretrained(
            pretrained_model_name_or_path, **kwargs
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (KeyError, ValueError) as error:
            # 4.57 looks for the class in tokenizer_config.json, then among its own models.
            if isinstance(error, ValueError) and "Unrecognized model" not in str(error):
                raise
            raise ValueError(
                f"{pretrained_model_name_or_path} does not say which tokenizer it has; "
                "expected a tokenizer_config.json with tokenizer_class. Write it with "
                "tokenizer.save_pretrained(FOLDER)."
            ) from error
        return [image_processor, tokenizer]

    @classmethod
    def from_args_and_dict(
        cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Build from loaded parts and a configuration.

        Args:
            args: Image processor and tokenizer.
            processor_dict: Contents of processor_config.json.
            **kwargs: Arguments that replace those of the configuration.

        Returns:
            The processor.
        """
        # transformers 5 nests the image processor's settings here; 4.57 would take them for the
        # part itself.
        settings = {
            name: value for name, value in processor_dict.items() if name not in cls.attributes
        }
        return super().from_args_and_dict(args, settings, **kwargs)  # type: ignore[misc]

    def to_dict(self, legacy_serialization: bool = False) -> dict[str, Any]:
        """Serialise the configuration, with the same keys whichever transformers line writes them.

        Args:
            legacy_serialization: Whether to leave the image processor's settings out, as 4.57 does.

        Returns:
            Contents of processor_config.json.
        """
        config = {
            "auto_map": dict(AUTO_MAP),
            "image_token": self.image_token,
            "num_additional_image_tokens": self.num_additional_image_tokens,
            "patch_size": self.patch_size,
            "processor_class": "HyperLlavaProcessor",
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
        }
        return (
            config
            if legacy_serialization
            else {**config, "image_processor": self.image_processor.to_dict()}
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write a folder that both transformers lines load, with the code that it needs.

        Args:
            save_directory: Folder to write to; made if missing.
            push_to_hub: Whether to push the processor afterwards.
            **kwargs: Arguments of `push_to_hub`, such as `repo_id`.

        Returns:
            Paths of the written files.

        Raises:
            ValueError: If the path is a file.
        """
        folder = Path(save_directory)
        written = save_processor(self, folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return written


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON object ({error}); get it again.") from error


def raise_if_settings_differ(folder: Any, subfolder: str = "") -> None:
    """Check that both files of a folder say the same of its images: each line reads another one.

    Args:
        folder: A folder; a Hub id is not looked at.
        subfolder: Folder in it.

    Raises:
        ValueError: If a setting that both files state has two values, or a file is damaged.
    """
    paths = [Path(folder, subfolder, name) for name in SETTINGS_FILES]
    if not all(path.is_file() for path in paths):
        return
    plain, whole = map(_load_json, paths)
    nested = whole.get("image_processor") or {}
    differing = [n for n in SETTINGS if n in plain and n in nested and plain[n] != nested[n]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder}: found {name} = {plain[name]!r} in {SETTINGS_FILES[0]} and "
            f"{nested[name]!r} in {SETTINGS_FILES[1]} (under image_processor), expected the same: "
            "transformers 4.57 reads the one, 5 the other. Change both, or save the processor anew."
        )


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
