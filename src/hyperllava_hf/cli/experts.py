"""hyperllava experts: take a model's experts out into a file, and put them back on their base."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hyperllava_hf.cli.convert import (
    BaseOption,
    DropOption,
    DryRunOption,
    DtypeOption,
    LayoutOption,
    OverwriteOption,
    ShardOption,
    TowerOption,
    VerifyOption,
    print_conversion,
)
from hyperllava_hf.cli.options import JsonOption, RevisionOption

EXAMPLES = """Examples:

hyperllava experts extract ./my-model experts.safetensors

hyperllava experts attach ./llava-7b experts.safetensors ./my-model"""
EXTRACT_EXAMPLES = """Examples:

hyperllava experts extract ./my-model experts.safetensors

hyperllava experts extract user/name experts.safetensors --revision v1.0"""
ATTACH_EXAMPLES = """Examples:

hyperllava experts attach ./llava-7b experts.safetensors ./my-model

hyperllava experts attach liuhaotian/llava-v1.5-7b experts.safetensors ./my-model"""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    about = "Take a model's experts out into a file, and put them back on their base."
    group = typer.Typer(help=about, epilog=EXAMPLES)
    group.command("extract", epilog=EXTRACT_EXAMPLES)(extract)
    group.command("attach", epilog=ATTACH_EXAMPLES)(attach)
    app.add_typer(group, name="experts")


def extract(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a HyperLLaVA.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    overwrite: OverwriteOption = False,
    revision: RevisionOption = None,
) -> None:
    """Write a model's experts alone, with the identity of the base that they belong to."""
    from hyperllava_hf.conversion import extract_experts

    report = extract_experts(
        model, output, overwrite=overwrite, revision=revision, progress=sys.stderr.isatty()
    )
    print(
        f"{report.file}: {report.num_tensors} tensors, {report.record.num_bytes:,} bytes, for the "
        f"base {report.base_identity}"
    )


def attach(
    base: Annotated[str, typer.Argument(help="Folder or Hub id of the base, in any layout.")],
    experts: Annotated[Path, typer.Argument(help="What `experts extract` wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    layout: LayoutOption = None,
    base_llm: BaseOption = None,
    vision_tower: TowerOption = None,
    drop_experts: DropOption = False,
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = "5GB",
    overwrite: OverwriteOption = False,
    verify: VerifyOption = True,
    dry_run: DryRunOption = False,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put experts back on their base; another base is refused."""
    from hyperllava_hf.conversion import attach_experts

    report = attach_experts(
        base,
        experts,
        output,
        layout=layout,
        base_llm=base_llm,
        vision_tower=vision_tower,
        drop_experts=drop_experts,
        dtype=dtype,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        verify=verify,
        dry_run=dry_run,
        revision=revision,
        progress=sys.stderr.isatty(),
    )
    print_conversion(report, dry_run, as_json)
