"""Everything that a result's folder holds beside its tensors, for each of the layouts written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperllava_hf import __version__

from ..json_files import load_json
from ..modeling.checkpoint_hyperllava import is_expert_key
from ..modeling.configuration_hyperllava import EXPERT_FIELDS
from .config_export import build_llava_config, build_llava_hf_config
from .config_translation import build_hyperllava_config
from .conversion_card import ConversionFacts, build_card, find_base_models
from .llava_text_files import write_llava_hf_text_files, write_llava_text_files
from .plan import Plan, name_dtype
from .resulting_model import EMBEDDING, OWN_FORMS, ResultingModel
from .shard_writer import write_text
from .source_opening import SourceRequest
from .source_parts import SourceParts
from .text_files import build_converted_processor, write_hyperllava_text_files
from .vision_configs import guess_vision_tower_name

CONFIG = "config.json"
CARD = "README.md"


@dataclass(frozen=True)
class ResultFolder:
    """A result's folder.

    Attributes:
        folder: where it is written.
        name: what it will be called.
        to: its layout.
        request: what the user says about the source.
        parts: the source's files.
        plan: what its tensors are made of.
        result: its tokenizer and the like.
    """

    folder: Path
    name: str
    to: str
    request: SourceRequest
    parts: SourceParts
    plan: Plan
    result: ResultingModel

    def write_text_files(self) -> list[str]:
        """Write configuration, tokenizer, processor, generation settings and code.

        Returns:
            What the user should know.
        """
        parts, result = self.parts, self.result
        stated = self.plan.config.to_diff_dict()
        fields = {name: stated[name] for name in EXPERT_FIELDS}
        dtype = name_dtype(self.plan.tensors[EMBEDDING].dtype)
        config = build_hyperllava_config(result.llava_config, fields, dtype)
        own_form = parts.layout in OWN_FORMS
        processor_folder = parts.folder if own_form else None
        if not own_form and parts.vision is not None:
            processor_folder = parts.vision.folder
        processor, notes = build_converted_processor(
            config, result.tokenizer, processor_folder, result.image_aspect_ratio
        )
        generation_folder = parts.folder
        if not (parts.folder / "generation_config.json").is_file() and parts.base is not None:
            generation_folder = parts.base.folder
        if self.to == "hyperllava":
            written = write_hyperllava_text_files(self.folder, config, processor, generation_folder)
        elif self.to == "llava-hf":
            written = write_llava_hf_text_files(
                self.folder, build_llava_hf_config(config), processor, generation_folder
            )
        else:
            written = write_llava_text_files(
                self.folder,
                self._build_original_config(config, processor),
                result.tokenizer,
                result.base_tokens,
                generation_folder,
            )
        return [*notes, *written]

    def _build_original_config(self, config: dict[str, Any], processor: Any) -> dict[str, Any]:
        tower = self.result.vision_tower or guess_vision_tower_name(config["vision_config"])
        aspect = self.result.image_aspect_ratio
        if aspect is None:
            aspect = "pad" if processor.image_processor.do_pad else "square"
        return build_llava_config(config, self.result.base_rows, tower or self.name, aspect)

    def write_card(self, verification: str | None, notes: list[str]) -> None:
        """Write the card.

        Args:
            verification: the sentences of the verification; None where it was not run.
            notes: what the reader should know.
        """
        parts, request = self.parts, self.request
        config = load_json(self.folder / CONFIG)
        named = [request.source, request.base_llm]
        named += [part.config.get("_name_or_path") for part in (parts, parts.base) if part]
        bases = find_base_models(*named)
        vision = parts.vision.folder.name if parts.vision else None
        if vision and request.vision_tower:
            vision = next(iter(find_base_models(request.vision_tower)), vision)
        elif vision and parts.config.get("mm_vision_tower"):
            vision = next(iter(find_base_models(parts.config["mm_vision_tower"])), vision)
        has_experts = any(is_expert_key(key) for key in self.plan.tensors)
        source = next(iter(find_base_models(request.source)), Path(request.source).name)
        facts = ConversionFacts(
            name=self.name,
            source=source,
            layout=parts.layout,
            to=self.to,
            config=config,
            package_version=__version__,
            source_revision=request.revision,
            base_models=bases,
            vision_tower=vision,
            fresh_experts=self.plan.identity if has_experts else None,
            verification=verification,
            notes=tuple(notes),
        )
        write_text(self.folder / CARD, build_card(facts))
