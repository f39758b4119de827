"""What a checkpoint is, from its config.json and the headers of its weights alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from hyperllava_hf.checkpoints import load_config_dict, resolve_checkpoint
from hyperllava_hf.conversion.config_errors import explain_wrong_types
from hyperllava_hf.inspection.tensor_headers import TensorHeader, load_tensor_headers
from hyperllava_hf.modeling import HyperLlavaConfig

# The first name that a key contains says which part it belongs to: experts before the modules that
# carry them.
PARTS = {
    "visual expert": "visual_expert.",
    "language experts": "language_expert.",
    "vision tower": "vision_tower.",
    "projector": "multi_modal_projector.",
    "language model": "",
}
EXPERT_PARTS = ("visual expert", "language experts")


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint's parameters and the configuration of its experts."""

    checkpoint: str
    parameters: dict[str, int]
    dtypes: dict[str, int]
    visual_expert: str
    language_expert_blocks: list[int]
    num_blocks: int
    guidance: str
    guidance_scope: str
    guidance_pooling: str | None
    expert_source: str
    expert_input_dim: int
    expert_hidden_dim: int
    notes: list[str]

    @property
    def num_parameters(self) -> int:
        """The number of parameters of the whole model."""
        return sum(self.parameters.values())

    @property
    def num_expert_parameters(self) -> int:
        """The number of parameters of the experts."""
        return sum(self.parameters[part] for part in EXPERT_PARTS)


def count_parameters(headers: dict[str, TensorHeader]) -> dict[str, int]:
    """Count the parameters of each part of the model.

    Args:
        headers: the checkpoint's tensors by name.

    Returns:
        The number of parameters by the part's name, in the order of PARTS.
    """
    counts = dict.fromkeys(PARTS, 0)
    for key, header in headers.items():
        part = next(part for part, mark in PARTS.items() if mark in key)
        counts[part] += header.num_parameters
    return counts


def format_blocks(blocks: Iterable[int]) -> str:
    """Write block indices as ranges.

    Args:
        blocks: indices in ascending order.

    Returns:
        Text such as `2, 4-7`, or `none`.
    """
    runs = groupby(enumerate(blocks), lambda pair: pair[1] - pair[0])
    ends = [(members[0][1], members[-1][1]) for members in (list(run) for _, run in runs)]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends) or "none"


def describe_guidance(config: HyperLlavaConfig) -> str:
    """Say in words what steers the language experts."""
    if not config.language_expert_blocks:
        return "none: no block carries an expert"
    if config.expert_source != "guided":
        return f"none: the experts are {config.expert_source}"
    if config.guidance_from_embeddings:
        return "the merged input embeddings"
    return f"the hidden state after {config.guidance_layer} of {config.num_blocks} blocks"


def get_notes(
    config: HyperLlavaConfig, counts: dict[str, int], dtypes: dict[str, int]
) -> list[str]:
    """List what a reader would otherwise be surprised by.

    Args:
        config: the checkpoint's configuration.
        counts: parameters by part.
        dtypes: parameters by dtype.

    Returns:
        One sentence a finding.
    """
    notes = []
    blocks = config.language_expert_blocks
    if blocks and config.expert_source == "guided" and config.guidance_from_embeddings:
        notes.append(
            f"Expert block {blocks[0]} lies before guidance block {config.guidance_layer}, so all "
            "language experts take the merged input embeddings as guidance (Table 3 of the paper)."
        )
    expected = {"visual expert": config.visual_expert != "none", "language experts": bool(blocks)}
    for part, wanted in expected.items():
        if wanted and not counts[part]:
            notes.append(f"The weights hold no {part}; loading starts them as the identity.")
    if getattr(config, "quantization_config", None) or "U8" in dtypes:
        notes.append("The weights are quantised: the counts are of stored values, not parameters.")
    return notes


def summarize_checkpoint(checkpoint: str | None, revision: str | None = None) -> CheckpointSummary:
    """Summarise a checkpoint without loading its weights.

    Args:
        checkpoint: a folder, a Hub id, or None for the bundled checkpoint.
        revision: branch, tag or commit on the Hub.

    Returns:
        The summary.

    Raises:
        ValueError: if the checkpoint is no HyperLLaVA, or its weights are missing or damaged.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    with explain_wrong_types(checkpoint):
        config = HyperLlavaConfig.from_dict(load_config_dict(checkpoint, revision))
    headers = load_tensor_headers(checkpoint, revision)
    if not headers:
        raise ValueError(f"the weights of {checkpoint} hold no tensor; get the checkpoint again")
    counts = count_parameters(headers)
    dtypes: dict[str, int] = {}
    for header in headers.values():
        dtypes[header.dtype] = dtypes.get(header.dtype, 0) + header.num_parameters
    pooled = config.language_guidance_scope == "prompt"
    return CheckpointSummary(
        checkpoint=checkpoint,
        parameters=counts,
        dtypes=dtypes,
        visual_expert=config.visual_expert,
        language_expert_blocks=list(config.language_expert_blocks),
        num_blocks=config.text_config.num_hidden_layers,
        guidance=describe_guidance(config),
        guidance_scope=config.language_guidance_scope,
        guidance_pooling=config.language_guidance_pooling if pooled else None,
        expert_source=config.expert_source,
        expert_input_dim=config.expert_input_dim,
        expert_hidden_dim=config.expert_hidden_dim,
        notes=get_notes(config, counts, dtypes),
    )
