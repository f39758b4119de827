"""hyperllava convert: a LLaVA-family checkpoint becomes a HyperLLaVA in safetensors, or back."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperllava_hf.cli.conversion_report import print_plan, print_report
from hyperllava_hf.cli.options import JsonOption, RevisionOption

if TYPE_CHECKING:
    from hyperllava_hf.conversion import ConversionReport

EXAMPLES = """Examples:

hyperllava convert liuhaotian/llava-v1.5-7b ./hyperllava-7b

hyperllava convert ./llava-lora ./merged --base-llm ./vicuna-7b --dry-run"""

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there, once the new one is complete.")
]
VerifyOption = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare logits of source and result.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16.", show_default="the source's"),
]
ShardOption = Annotated[str, typer.Option(help="Largest file of weights.")]
NonFiniteOption = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Convert NaN and Inf instead of refusing them.")
]
DropOption = Annotated[
    bool, typer.Option("--drop-experts", help="Allow trained experts to be lost.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        help="llava, llava-hf, projector, lora, delta, zero, fork or hyperllava.",
        show_default="found out",
    ),
]
BaseOption = Annotated[
    str | None, typer.Option(help="The LLM that a projector, LoRA or delta belongs to.")
]
TowerOption = Annotated[
    str | None, typer.Option(help="The CLIP tower, where the source does not hold it.")
]
RulesOption = Annotated[
    Path | None, typer.Option(help="TOML table of a fork's names of the experts.")
]
ToOption = Annotated[str, typer.Option(help="hyperllava; or without experts: llava-hf, llava.")]
ExpertsOption = Annotated[
    str | None, typer.Option(help="init, none or FILE.", show_default="the source's, else init")
]
VisualExpertOption = Annotated[
    str | None, typer.Option(help="first, second, both or none (Table 2).")
]
LayersOption = Annotated[
    str | None,
    typer.Option(help="posterior, anterior, all, none or indices such as 16,17 (Table 3)."),
]
GuidanceLayerOption = Annotated[
    int | None, typer.Option(help="Blocks below the language guidance (Fig. 3).")
]
ScopeOption = Annotated[str | None, typer.Option(help="token or prompt.")]
PoolingOption = Annotated[str | None, typer.Option(help="mean, text or last, under prompt.")]
InputDimOption = Annotated[int | None, typer.Option(help="m (Eq. 3).")]
HiddenDimOption = Annotated[int | None, typer.Option(help="r (Eq. 5).")]
ExpertSourceOption = Annotated[str | None, typer.Option(help="guided, latent or static (Table 5).")]
SeedOption = Annotated[int, typer.Option(help="Seed of fresh experts.")]
HashOption = Annotated[
    bool, typer.Option("--hash-inputs/--no-hash-inputs", help="Record the inputs' sha256.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("convert", epilog=EXAMPLES, short_help="Turn a LLaVA into a HyperLLaVA, or back.")(
        convert
    )


def parse_layers(value: str | None) -> str | list[int] | None:
    """Read the blocks of the language experts: a name, or indices with commas between them."""
    if value is None or not any(char.isdigit() for char in value):
        return value
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"--language-expert-layers is {value!r}; expected a name or indices such as 16,17,18"
        ) from error


def convert(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, mm_projector.bin or Hub id.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write.")],
    to: ToOption = "hyperllava",
    layout: LayoutOption = None,
    base_llm: BaseOption = None,
    vision_tower: TowerOption = None,
    rules: RulesOption = None,
    experts: ExpertsOption = None,
    visual_expert: VisualExpertOption = None,
    language_expert_layers: LayersOption = None,
    language_guidance_layer: GuidanceLayerOption = None,
    language_guidance_scope: ScopeOption = None,
    language_guidance_pooling: PoolingOption = None,
    expert_input_dim: InputDimOption = None,
    expert_hidden_dim: HiddenDimOption = None,
    expert_source: ExpertSourceOption = None,
    seed: SeedOption = 0,
    drop_experts: DropOption = False,
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = "5GB",
    allow_nonfinite: NonFiniteOption = False,
    overwrite: OverwriteOption = False,
    verify: VerifyOption = True,
    hash_inputs: HashOption = True,
    dry_run: DryRunOption = False,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a LLaVA-family checkpoint into a HyperLLaVA that loads at once, or back."""
    from hyperllava_hf.conversion import convert as run
    from hyperllava_hf.modeling.configuration_hyperllava import EXPERT_FIELDS

    # Every option has the name of the function's argument or of a configuration field.
    options = {name: value for name, value in context.params.items() if name != "as_json"}
    fields = {name: options.pop(name) for name in EXPERT_FIELDS}
    fields["language_expert_layers"] = parse_layers(language_expert_layers)
    options["expert_fields"] = {name: value for name, value in fields.items() if value is not None}
    report = run(**options, progress=sys.stderr.isatty())
    print_conversion(report, dry_run, as_json)


def print_conversion(report: "ConversionReport", dry_run: bool, as_json: bool) -> None:
    """Print what was converted, or what would be."""
    if as_json:
        print(json.dumps(asdict(report), indent=2, default=str))
    elif dry_run:
        print_plan(report)
    else:
        print_report(report)
