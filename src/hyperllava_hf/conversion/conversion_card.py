"""The README.md of a converted folder: what it is, where it is from, and nothing not measured."""

import re
from dataclasses import dataclass, field
from typing import Any

from hyperllava_hf.checkpoints import HUB_ID

# Language models under the Llama 2 Community License, and LLaVAs that were trained from them.
_LLAMA_2 = re.compile(r"llama-?2|vicuna-\d+b-v1\.5|llava-(v)?1\.5|llava-(v)?1\.6-vicuna", re.I)
# Names with one slash that are folders of a training machine, not repositories.
_FOLDERS = re.compile(
    r"(checkpoints?|ckpts?|models?|weights|outputs?|work_dirs?|runs|data|tmp|exp)/", re.I
)
_TITLES = {"hyperllava": "HyperLLaVA", "llava-hf": "LLaVA (llava-hf form)", "llava": "LLaVA"}


@dataclass(frozen=True)
class ConversionFacts:
    """What a card may say about a conversion.

    Attributes:
        name: name of the written folder.
        source: Hub id of what was converted, or its folder's name; no path.
        layout: the source's layout.
        to: "hyperllava", "llava-hf" or "llava".
        source_revision: commit of a source on the Hub.
        base_models: Hub ids that the model was made from, as `find_base_models` lists them.
        vision_tower: Hub id or name of a vision tower that was taken from elsewhere.
        config: fields of the written config.json.
        package_version: version of hyperllava-hf.
        fresh_experts: whether the experts are untrained; None where there are none.
        verification: the sentence of the verification; None where it was not run.
        notes: differences to the source that the conversion reported.
        license: a licence id that the user states; None derives it.
    """

    name: str
    source: str
    layout: str
    to: str
    config: dict[str, Any]
    package_version: str
    source_revision: str | None = None
    base_models: tuple[str, ...] = ()
    vision_tower: str | None = None
    fresh_experts: bool | None = None
    verification: str | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    license: str | None = None


def find_base_models(*names: str | None) -> tuple[str, ...]:
    """Pick the names that are repositories on the Hub.

    Args:
        *names: Names that the user gave, and `_name_or_path` of configurations.

    Returns:
        The Hub ids among them, each once.
    """
    ids = [name for name in names if name and HUB_ID.fullmatch(name) and not _FOLDERS.match(name)]
    return tuple(dict.fromkeys(ids))


def find_license(*names: str | None) -> str | None:
    """Derive the licence that a base model's terms put on what is made from it.

    Args:
        *names: Names of the source and of its base models.

    Returns:
        "llama2", or None if the names do not tell.
    """
    return "llama2" if any(name and _LLAMA_2.search(name) for name in names) else None


def build_metadata(facts: ConversionFacts) -> dict[str, Any]:
    """Build the metadata that the Hub reads from a card.

    Args:
        facts: What is known of the conversion.

    Returns:
        Fields of the card's YAML header.
    """
    licence = facts.license or find_license(facts.source, *facts.base_models)
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "license": licence or "other",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava", "vision-language"],
    }
    if licence is None:
        metadata["license_name"] = "unknown"
    if facts.to == "hyperllava":
        metadata["tags"] = ["hyperllava", "llava", "hypernetwork", "vision-language", "custom_code"]
    if facts.base_models:
        metadata["base_model"] = list(facts.base_models)
        # The Hub knows no "converted"; of its relations this is the one that fits.
        metadata["base_model_relation"] = "finetune"
    return metadata


def build_card(facts: ConversionFacts) -> str:
    """Build the whole README.md of a converted folder.

    Args:
        facts: What is known of the conversion.

    Returns:
        YAML header and text.
    """
    sections = [
        _describe_model(facts),
        _describe_loading(facts),
        _describe_source(facts),
        _describe_verification(facts),
        _describe_license(facts),
    ]
    return render_metadata(build_metadata(facts)) + "\n" + "\n".join(sections)


def render_metadata(metadata: dict[str, Any]) -> str:
    """Render a card's YAML header.

    Args:
        metadata: Its fields.

    Returns:
        The header with its delimiters.
    """
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(ignore_metadata_errors=False, **metadata).to_yaml()}\n---\n"


def _describe_model(facts: ConversionFacts) -> str:
    title = f"# {facts.name}\n\n"
    if facts.to != "hyperllava":
        return title + (
            f"A {_TITLES[facts.to]} model without experts, converted from `{facts.source}`.\n"
        )
    experts = {
        None: "It has no experts, so it computes what LLaVA computes.",
        True: (
            "**Its experts are untrained.** They start as the identity update: until they are "
            "trained, this model computes what the LLaVA that it came from computes, and answers "
            "no better."
        ),
        False: "Its experts are those of the source.",
    }[facts.fresh_experts]
    config = facts.config
    return title + (
        "A [HyperLLaVA](https://arxiv.org/abs/2403.13447): LLaVA whose projector and decoder get "
        f"adapters that are generated for every input. Converted from `{facts.source}`; the "
        f"paper's authors published no weights, and these are not theirs.\n\n{experts}\n\n"
        f"Visual expert: `{config.get('visual_expert')}`; language experts: "
        f"`{config.get('language_expert_layers')}`; scope: "
        f"`{config.get('language_guidance_scope')}`; number format: `{config.get('dtype')}`.\n"
    )


def _describe_loading(facts: ConversionFacts) -> str:
    if facts.to == "llava":
        return "## Load\n\nWith the original LLaVA's code, as any of its checkpoints.\n"
    if facts.to == "llava-hf":
        return (
            "## Load\n\n```python\n"
            "from transformers import AutoProcessor, LlavaForConditionalGeneration\n\n"
            "processor = AutoProcessor.from_pretrained(folder)\n"
            "model = LlavaForConditionalGeneration.from_pretrained(folder)\n```\n"
        )
    return (
        "## Load\n\nFrom a folder:\n\n```python\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        "model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)\n"
        "```\n\nFrom the Hub, pinned to a commit whose code you have read, since that code runs on "
        "your machine:\n\n```python\n"
        'pinned = {"trust_remote_code": True, "revision": COMMIT, "code_revision": COMMIT}\n'
        'model = AutoModelForImageTextToText.from_pretrained("USER/NAME", **pinned)\n```\n\n'
        "The code needs torch and transformers 4.57 or 5.x and nothing else. With "
        "`import hyperllava_hf` first, the folder loads without `trust_remote_code`.\n"
    )


def _describe_source(facts: ConversionFacts) -> str:
    commit = f" at commit `{facts.source_revision}`" if facts.source_revision else ""
    lines = [
        "## How it was made\n",
        f"- Source: `{facts.source}`{commit}, layout `{facts.layout}`.",
        f"- Tool: `hyperllava convert`, hyperllava-hf {facts.package_version}; options, sha256 of "
        "every input and output: `conversion.json`.",
    ]
    if facts.vision_tower:
        lines.append(f"- Vision tower: taken from `{facts.vision_tower}`.")
    lines += [f"- {note[:1].upper()}{note[1:].rstrip('.')}." for note in facts.notes]
    return "\n".join(lines) + "\n"


def _describe_verification(facts: ConversionFacts) -> str:
    found = facts.verification or "The conversion was not verified (`--no-verify`)."
    return (
        f"## Verification and evaluation\n\n{found.strip()}\n\nNothing was evaluated on a "
        "benchmark after the conversion.\n"
    )


def _describe_license(facts: ConversionFacts) -> str:
    licence = build_metadata(facts)["license"]
    if licence == "llama2":
        terms = (
            "The weights derive from Llama 2 (Vicuna v1.5 or LLaVA-1.5): the Llama 2 Community "
            "License applies. LLaVA's training data have terms of their own."
        )
    elif facts.license:
        terms = f"As stated at the conversion: `{licence}`."
    else:
        terms = (
            "Unknown: the names of the source do not tell which terms its weights are under. "
            "Those of its language model, its vision tower and its training data apply; find them "
            "before passing this on, and correct `license` above."
        )
    code = " The code beside the weights is Apache-2.0." if facts.to == "hyperllava" else ""
    return f"## Licence\n\n{terms}{code}\n"
