"""hyperllava convert: a LLaVA-family checkpoint becomes a HyperLLaVA in safetensors, or back."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("convert", epilog=EXAMPLES)(convert)


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
    source: Annotated[str, typer.Argument(help="Folder, mm_projector.bin or Hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write.")],
    to: Annotated[
        str, typer.Option(help="hyperllava; or without experts: llava-hf, llava.")
    ] = "hyperllava",
    layout: LayoutOption = None,
    base_llm: BaseOption = None,
    vision_tower: TowerOption = None,
    rules: RulesOption = None,
    experts: Annotated[
        str | None,
        typer.Option(help="init, none or FILE.", show_default="the source's, else init"),
    ] = None,
    visual_expert: Annotated[
        str | None, typer.Option(help="first, second, both or none (Table 2).")
    ] = None,
    language_expert_layers: Annotated[
        str | None,
        typer.Option(help="posterior, anterior, all, none or indices such as 16,17 (Table 3)."),
    ] = None,
    language_guidance_layer: Annotated[
        int | None, typer.Option(help="Blocks below the language guidance (Fig. 3).")
    ] = None,
    language_guidance_scope: Annotated[str | None, typer.Option(help="token or prompt.")] = None,
    language_guidance_pooling: Annotated[
        str | None, typer.Option(help="mean, text or last, under prompt.")
    ] = None,
    expert_input_dim: Annotated[int | None, typer.Option(help="m (Eq. 3).")] = None,
    expert_hidden_dim: Annotated[int | None, typer.Option(help="r (Eq. 5).")] = None,
    expert_source: Annotated[
        str | None, typer.Option(help="guided, latent or static (Table 5).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of fresh experts.")] = 0,
    drop_experts: DropOption = False,
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = "5GB",
    allow_nonfinite: NonFiniteOption = False,
    overwrite: OverwriteOption = False,
    verify: VerifyOption = True,
    hash_inputs: Annotated[
        bool, typer.Option("--hash-inputs/--no-hash-inputs", help="Record the inputs' sha256.")
    ] = True,
    dry_run: DryRunOption = False,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a LLaVA-family checkpoint into a HyperLLaVA that loads at once, or back."""
    from hyperllava_hf.conversion import convert as run

    fields: dict[str, Any] = {
        "visual_expert": visual_expert,
        "language_expert_layers": parse_layers(language_expert_layers),
        "language_guidance_layer": language_guidance_layer,
        "language_guidance_scope": language_guidance_scope,
        "language_guidance_pooling": language_guidance_pooling,
        "expert_input_dim": expert_input_dim,
        "expert_hidden_dim": expert_hidden_dim,
        "expert_source": expert_source,
    }
    report = run(
        source,
        destination,
        to=to,
        layout=layout,
        base_llm=base_llm,
        vision_tower=vision_tower,
        rules=rules,
        experts=experts,
        expert_fields={name: value for name, value in fields.items() if value is not None},
        drop_experts=drop_experts,
        dtype=dtype,
        max_shard_size=max_shard_size,
        seed=seed,
        allow_nonfinite=allow_nonfinite,
        overwrite=overwrite,
        verify=verify,
        hash_inputs=hash_inputs,
        dry_run=dry_run,
        revision=revision,
        progress=sys.stderr.isatty(),
    )
    print_conversion(report, dry_run, as_json)


def print_conversion(report: "ConversionReport", dry_run: bool, as_json: bool) -> None:
    """Print what was converted, or what would be."""
    if as_json:
        print(json.dumps(asdict(report), indent=2, default=str))
    elif dry_run:
        print_plan(report)
    else:
        print_report(report)
