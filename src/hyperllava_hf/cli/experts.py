"""hyperllava experts: a model's experts as a file, back on their base, or frozen at their mean."""

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
FREEZE_EXAMPLES = """Examples:

hyperllava experts freeze ./my-model ./frozen --data instruct.json --image-folder ./images

hyperllava experts freeze user/name ./frozen --data user/dataset --rows 2000"""
EXTRACT_EXAMPLES = """Examples:

hyperllava experts extract ./my-model experts.safetensors

hyperllava experts extract user/name experts.safetensors --revision v1.0"""
ATTACH_EXAMPLES = """Examples:

hyperllava experts attach ./llava-7b experts.safetensors ./my-model

hyperllava experts attach liuhaotian/llava-v1.5-7b experts.safetensors ./my-model"""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    about = "Take a model's experts out into a file, put them back on their base, or freeze them."
    group = typer.Typer(
        help=about, short_help="Extract, attach or freeze experts.", epilog=EXAMPLES
    )
    group.command("extract", epilog=EXTRACT_EXAMPLES, short_help="Write experts to a file.")(
        extract
    )
    group.command("attach", epilog=ATTACH_EXAMPLES)(attach)
    group.command(
        "freeze", epilog=FREEZE_EXAMPLES, short_help="Replace experts by their mean over data."
    )(freeze)
    app.add_typer(group, name="experts")


def extract(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a HyperLLaVA.")
    ],
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
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Folder or Hub id of the base, in any layout.")
    ],
    experts: Annotated[
        Path, typer.Argument(metavar="EXPERTS", help="What `experts extract` wrote.")
    ],
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


def freeze(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a HyperLLaVA.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    data: Annotated[
        list[str], typer.Option(help="LLaVA file or dataset like the inputs to come; repeatable.")
    ],
    image_folder: Annotated[
        Path | None, typer.Option(help="What the rows' image paths are relative to.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to read, spread over the data.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Rows a forward.")] = 4,
    device: Annotated[str, typer.Option(help="A torch device, or auto.")] = "auto",
    on_bad_row: Annotated[str, typer.Option(help="stop or skip.")] = "stop",
    overwrite: OverwriteOption = False,
    verify: VerifyOption = True,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace generated experts by their mean over data; what is left is a plain adapter."""
    from hyperllava_hf.conversion.frozen_checkpoint import write_frozen_checkpoint
    from hyperllava_hf.data import DataSource

    folder = None if image_folder is None else str(image_folder)
    report = write_frozen_checkpoint(
        model,
        output,
        [DataSource(path, folder) for path in data],
        num_rows=rows,
        batch_size=batch_size,
        device=device,
        on_bad_row=on_bad_row,
        overwrite=overwrite,
        verify=verify,
        revision=revision,
        progress=sys.stderr.isatty(),
    )
    print_conversion(report, False, as_json)
