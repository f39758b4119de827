"""Convert a checkpoint: open the source, plan every tensor, stream them, verify, put in place.

open_part, complete   files of the source                  source_opening
gather                its tensors under our keys           gathering, key_tables
describe_result       configuration, tokenizer             resulting_model
build_plan            what each tensor is made of          plan
write_shards          rows, hashed on their way            shard_writer
verify                logits of source and result          verification
stage                 the folder appears at the end        staging
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..modeling import HyperLlavaConfig
from ..modeling.configuration_hyperllava import EXPERT_FIELDS
from .byte_progress import ByteProgress
from .checkpoint_files import load_config
from .config_errors import explain_wrong_types
from .config_translation import build_hyperllava_config
from .experts_files import are_identity, read_experts_file, split_experts
from .gathering import Gathered, gather
from .input_hashing import hash_in_background
from .manifest import hash_outputs, list_inputs, write_manifest
from .meta_model import MetaModel
from .plan import (
    Plan,
    PlannedTensor,
    build_experts,
    cast_tensors,
    choose_dtype,
    choose_expert_fields,
    name_dtype,
    raise_if_base_differs,
    raise_if_experts_lost,
    raise_if_keys_differ,
    rename_for_target,
    resize_vocabulary,
    summarize_dropped,
)
from .result_folder import ResultFolder
from .resulting_model import ResultingModel, describe_result, read_fields
from .rules import ForkRules, load_rules
from .shard_writer import FileRecord, write_shards
from .source_opening import LAYOUTS, SourceRequest, complete, locate, open_part
from .source_parts import SourceParts
from .staging import raise_if_full, raise_if_inside, raise_if_taken, stage
from .verification import Verification, verify
from .zero_checkpoints import consolidate_zero

TARGETS = ("hyperllava", "llava-hf", "llava")
DTYPES = ("float32", "float16", "bfloat16")
# Room for tokenizer, code and the like beside the tensors.
SMALL_FILES = 32 * 2**20


@dataclass(frozen=True)
class ConversionOptions:
    """What a conversion is asked to do; see `convert`."""

    to: str = "hyperllava"
    rules: Path | None = None
    experts: str | None = None
    expert_fields: Mapping[str, Any] = field(default_factory=dict)
    drop_experts: bool = False
    dtype: str | None = None
    max_shard_size: str | int = "5GB"
    seed: int = 0
    allow_nonfinite: bool = False
    overwrite: bool = False
    verify: bool = True
    hash_inputs: bool = True
    progress: bool = False


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or with `dry_run` would do.

    Attributes:
        layout: the source's layout.
        to: the result's layout.
        destination: the result's folder.
        planned: every tensor of the result.
        notes: what the user should know.
        inputs: the files that were read; empty after a dry run.
        outputs: the files that were written; empty after a dry run.
        verification: how the result was verified; None if it was not.
    """

    layout: str
    to: str
    destination: Path
    planned: list[PlannedTensor]
    notes: list[str]
    inputs: list[FileRecord] = field(default_factory=list)
    outputs: list[FileRecord] = field(default_factory=list)
    verification: Verification | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the result's tensors."""
        return sum(tensor.num_bytes for tensor in self.planned)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "hyperllava",
    layout: str | None = None,
    base_llm: str | Path | None = None,
    vision_tower: str | Path | None = None,
    rules: str | Path | None = None,
    experts: str | Path | None = None,
    expert_fields: Mapping[str, Any] | None = None,
    drop_experts: bool = False,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    seed: int = 0,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    verify: bool = True,
    hash_inputs: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    progress: bool = False,
) -> ConversionReport:
    """Convert a LLaVA-family checkpoint into a folder of safetensors that loads at once.

    Args:
        source: folder, projector file or Hub id.
        destination: the folder to write; it appears when it is complete.
        to: "hyperllava"; "llava-hf" or "llava" write an expert-free LLaVA in that layout.
        layout: the source's layout, one of `LAYOUTS`; None finds out.
        base_llm: folder or Hub id of the model that a projector, LoRA or delta belongs to.
        vision_tower: folder or Hub id of the CLIP tower, where it is not inside.
        rules: TOML file with a fork's names of the experts.
        experts: "init" for fresh experts, "none", or a file of experts; None keeps the source's
            and else initialises them.
        expert_fields: expert fields of `HyperLlavaConfig`.
        drop_experts: whether trained experts may be lost.
        dtype: "float32", "float16" or "bfloat16"; None keeps the decoder's.
        max_shard_size: largest size of a file of weights.
        seed: seed of fresh experts.
        allow_nonfinite: whether NaN and Inf may be converted.
        overwrite: whether a destination that is not empty may be replaced.
        verify: whether to compare logits of source and result.
        hash_inputs: whether the manifest holds the sha256 of the inputs.
        dry_run: whether to plan only.
        revision: branch, tag or commit of a source on the Hub.
        progress: whether to show progress on stderr.

    Returns:
        What was done.

    Raises:
        ValueError: if the source cannot be converted; nothing is then left of the result.
    """
    request = SourceRequest(
        str(source),
        layout,
        None if base_llm is None else str(base_llm),
        None if vision_tower is None else str(vision_tower),
        revision,
    )
    options = ConversionOptions(
        to,
        None if rules is None else Path(rules),
        None if experts is None else str(experts),
        dict(expert_fields or {}),
        drop_experts,
        dtype,
        max_shard_size,
        seed,
        allow_nonfinite,
        overwrite,
        verify,
        hash_inputs,
        progress,
    )
    return run_conversion(request, Path(destination), options, dry_run)


def run_conversion(
    request: SourceRequest, destination: Path, options: ConversionOptions, dry_run: bool
) -> ConversionReport:
    """Convert, or plan a conversion.

    Args:
        request: what the user says about the source.
        destination: the folder to write.
        options: what is asked for.
        dry_run: whether to plan only.

    Returns:
        What was done.

    Raises:
        ValueError: if the source cannot be converted.
    """
    raise_if_unknown(request, options)
    parts = open_part(locate(request.source, request.revision), request.layout)
    raise_if_inside(destination, *{part.folder for part in (parts, *_named_folders(request))})
    if dry_run:
        raise_if_taken(destination, options.overwrite)
        with tempfile.TemporaryDirectory() as scratch:
            conversion = Conversion(parts, request, options, Path(scratch))
            conversion.raise_if_inside_source(destination)
            return conversion.report(destination)
    with stage(destination, options.overwrite) as work, _scratch(work) as scratch:
        conversion = Conversion(parts, request, options, scratch)
        conversion.raise_if_inside_source(destination)
        raise_if_full(work, conversion.plan.num_bytes + SMALL_FILES)
        return conversion.write(work, destination, scratch)


def _named_folders(request: SourceRequest) -> list[SourceParts]:
    named = [name for name in (request.base_llm, request.vision_tower) if name]
    return [SourceParts("", path, ()) for name in named if (path := Path(name)).exists()]


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    # Inside the folder that is being written: an interrupted run's scratch goes with it.
    with tempfile.TemporaryDirectory(dir=work, prefix=".scratch-") as folder:
        yield Path(folder)


def raise_if_unknown(request: SourceRequest, options: ConversionOptions) -> None:
    """Check options that take one of a few names.

    Args:
        request: what the user says about the source.
        options: what is asked for.

    Raises:
        ValueError: if one is unknown.
    """
    choices = (
        ("to", options.to, TARGETS),
        ("layout", request.layout, (None, *LAYOUTS)),
        ("dtype", options.dtype, (None, *DTYPES)),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            listed = ", ".join(str(item) for item in allowed if item is not None)
            raise ValueError(f"--{name} is {value!r}; expected one of {listed}")
    if options.to != "hyperllava" and (options.experts or options.expert_fields):
        raise ValueError(
            f"found options of experts with --to {options.to}, whose layout has none; expected "
            "them with --to hyperllava"
        )


class Conversion:
    """One conversion, planned as a whole before anything is written.

    Args:
        parts: the source's own files.
        request: what the user says about the source.
        options: what is asked for.
        scratch: a folder for what is made on the way.
    """

    def __init__(
        self, parts: SourceParts, request: SourceRequest, options: ConversionOptions, scratch: Path
    ) -> None:
        self.options, self.request = options, request
        self.layout = parts.layout
        if parts.layout == "zero":
            parts = open_consolidated(parts, scratch)
        self.parts = complete(parts, request)
        if options.rules is not None and self.parts.layout in ("llava", "fork"):
            self.parts = replace(self.parts, layout="fork")
            self.layout = "fork"
        elif options.rules is not None:
            raise ValueError(
                f"found --rules, but the source has the layout {self.parts.layout!r}; expected "
                "a fork of the original LLaVA"
            )
        self.rules = load_rules(options.rules) if options.rules else ForkRules()
        gathered = gather(self.parts, self.rules)
        with explain_wrong_types(self.parts.folder):
            self.result = describe_result(self.parts, gathered)
            self.plan = build_plan(self.parts, gathered, self.result, self.rules, options)

    def raise_if_inside_source(self, destination: Path) -> None:
        """Check that what the source itself names, a vision tower, is not written to either."""
        leaned_on = (self.parts, self.parts.base, self.parts.vision)
        # What DeepSpeed consolidated lies in the scratch folder, which is ours.
        raise_if_inside(destination, *{part.folder for part in leaned_on if part is not None})

    def report(self, destination: Path) -> ConversionReport:
        """Say what will be done."""
        return ConversionReport(
            self.layout,
            self.options.to,
            destination,
            self.plan.list_planned(),
            [*self.result.notes, *self.plan.notes],
        )

    def write(self, work: Path, destination: Path, scratch: Path) -> ConversionReport:
        """Write the result into a folder.

        Args:
            work: the folder.
            destination: what it will be called.
            scratch: a folder for what is made on the way.

        Returns:
            What was done.

        Raises:
            ValueError: if the result does not compute what the source does.
        """
        options, inputs = self.options, list_inputs(self.parts)
        total = self.plan.num_bytes
        with (
            hash_in_background(inputs, options.hash_inputs) as hashed,
            ByteProgress("writing", total, options.progress) as progress,
        ):
            written = write_shards(
                work,
                self.plan.get_outputs(),
                options.max_shard_size,
                options.allow_nonfinite,
                progress.advance,
            )
            records = hashed()
        folder = ResultFolder(
            work, destination.name, options.to, self.request, self.parts, self.plan, self.result
        )
        report = self.report(destination)
        with explain_wrong_types(self.parts.folder):
            report = replace(report, notes=[*report.notes, *folder.write_text_files()])
        if options.verify:
            report = replace(report, verification=self.verify(work, scratch))
        found = report.verification
        folder.write_card(" ".join(found.sentences) if found else None, report.notes)
        outputs = hash_outputs(work, written, scratch)
        report = replace(report, inputs=records, outputs=outputs)
        write_manifest(work, self.get_facts(report), records, outputs)
        return report

    def verify(self, work: Path, scratch: Path) -> Verification:
        """Compare the logits of source and result.

        Args:
            work: the result's folder.
            scratch: a folder for what is made on the way.

        Returns:
            How they compare.

        Raises:
            ValueError: if they differ by more than rounding.
        """
        found = verify(
            self.parts,
            work,
            self.options.to,
            self.result.llava_config,
            self.result.source_rows,
            scratch=scratch,
            # Other fields make other experts of the same weights, on purpose.
            experts_kept=self.options.experts is None and not self.options.expert_fields,
        )
        if not found.passed:
            raise ValueError(
                f"the result does not compute what {self.parts.folder} computes: "
                f"{' '.join(found.sentences)} Nothing was written; please report this, with the "
                "plan that --dry-run prints"
            )
        return found

    def get_facts(self, report: ConversionReport) -> dict[str, Any]:
        """Return what the manifest says beside the files."""
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self.options).items()
            if name not in ("progress", "overwrite")
        }
        return {
            "base_vocabulary_size": self.result.base_rows,
            "layout": self.layout,
            "notes": report.notes,
            "options": options,
            "vision_tower": self.result.vision_tower,
            "verification": report.verification.to_dict() if report.verification else None,
        }


def open_consolidated(parts: SourceParts, scratch: Path) -> SourceParts:
    """Consolidate a ZeRO checkpoint and open the result.

    Args:
        parts: the ZeRO folder.
        scratch: where to write.

    Returns:
        The consolidated weights, with configuration and tokenizer of the ZeRO folder.
    """
    folder = consolidate_zero(parts.folder, scratch / "consolidated")
    # DeepSpeed writes weights alone; what decides their layout stands beside the checkpoint.
    config = load_config(parts.folder)
    found = open_part(folder, "hyperllava" if config.get("model_type") == "hyperllava" else None)
    return replace(found, folder=parts.folder, config=config)


def build_plan(
    parts: SourceParts,
    gathered: Gathered,
    result: ResultingModel,
    rules: ForkRules,
    options: ConversionOptions,
) -> Plan:
    """Plan every tensor of the result.

    Args:
        parts: the source's files.
        gathered: the source's tensors.
        result: configuration, tokenizer and vocabulary of the result.
        rules: what a fork calls its experts.
        options: what is asked for.

    Returns:
        The plan.

    Raises:
        ValueError: if the source is not what its configuration says, or experts do not fit.
    """
    held_fields = read_fields(parts, rules.expert_fields, options.expert_fields)
    source_fields = {**EXPERT_FIELDS, **held_fields}
    source_config = _build_config(result, source_fields)
    raise_if_keys_differ(gathered, MetaModel(source_config).get_shapes(), parts)
    _, held = split_experts(gathered.tensors)
    choice: Any = "none" if options.to != "hyperllava" else options.experts
    raise_if_experts_lost(choice, held, options.drop_experts)
    if choice not in (None, "init", "none"):
        choice = read_experts_file(Path(choice))
    fields = choose_expert_fields(choice, held_fields, options.expert_fields)
    config = _build_config(result, fields)
    dtype = choose_dtype(gathered.tensors, options.dtype)
    base, held = split_experts(cast_tensors(gathered.tensors, dtype, options.dtype is None))
    # A tied head is the embedding itself.
    if config.text_config.tie_word_embeddings:
        base.pop("lm_head.weight", None)
    num_rows = result.base_rows if options.to == "llava" else result.num_rows
    base = resize_vocabulary(base, num_rows)
    if not isinstance(choice, (str, type(None))):
        raise_if_base_differs(choice, base)
    model = MetaModel(config)
    experts = build_experts(choice, held, model, dtype, options.seed)
    if options.dtype is not None:
        experts = cast_tensors(experts, dtype, False)
    tensors = {**base, **experts}
    ordered = {key: tensors[key] for key in model.get_shapes() if key in tensors}
    notes = [
        *_describe_casts(gathered, dtype, name_dtype(dtype)),
        *summarize_dropped(gathered.dropped),
    ]
    return Plan(
        config,
        ordered,
        rename_for_target(ordered, options.to),
        gathered.source_keys,
        notes,
        are_identity(experts),
    )


def _build_config(result: ResultingModel, fields: Mapping[str, Any]) -> HyperLlavaConfig:
    content = build_hyperllava_config(
        result.llava_config, {name: fields[name] for name in EXPERT_FIELDS}
    )
    return HyperLlavaConfig.from_dict(content)


def _describe_casts(gathered: Gathered, dtype: Any, name: str) -> list[str]:
    changed: dict[str, int] = {}
    for key, tensor in gathered.tensors.items():
        if tensor.dtype != dtype:
            part = key.removeprefix("model.").split(".")[0]
            changed[part] = changed.get(part, 0) + 1
    return [f"{part}: {count} tensors were cast to {name}" for part, count in changed.items()]
