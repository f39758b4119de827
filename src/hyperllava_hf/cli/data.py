"""hyperllava data: check training data before a GPU is rented."""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperllava_hf.cli.options import JsonOption

if TYPE_CHECKING:
    from hyperllava_hf.data.data_check import DataReport

EXAMPLES = """Examples:

hyperllava data check train.json --image-folder images

hyperllava data check train.json --image-folder images --model ./my-model --max-length 2048"""
CHECK_EXAMPLES = """Examples:

hyperllava data check train.json --image-folder images --workers 8

hyperllava data check user/dataset --split train --model ./my-model --max-length 2048 --json"""


class Template(StrEnum):
    """The chat templates of the two stages."""

    PLAIN = "plain"
    VICUNA_V1 = "vicuna_v1"


class Format(StrEnum):
    """The forms of a row."""

    LLAVA = "llava"
    MESSAGES = "messages"


NameOption = Annotated[str | None, typer.Option(help="Configuration of a dataset on the Hub.")]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a dataset on the Hub.")
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="Form of the rows.", show_default="told from each row"),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Check training data before a GPU is rented.", epilog=EXAMPLES)
    # With one command alone, typer would drop its name.
    group.callback()(start)
    group.command(
        "check", epilog=CHECK_EXAMPLES, short_help="Report rows that cannot be trained on."
    )(check)
    app.add_typer(group, name="data")


def start() -> None:
    """Check training data before a GPU is rented."""


def check(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="LLaVA .json or .jsonl (.gz too), a folder or file of the datasets library, or a "
            "dataset's Hub id.",
        ),
    ],
    image_folder: Annotated[
        str | None,
        typer.Option(help="What image paths are relative to.", show_default="the file's folder"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the model; its tokenizer counts the tokens."),
    ] = None,
    template: Annotated[
        Template, typer.Option(help="plain for stage 1, vicuna_v1 for stage 2.")
    ] = Template.VICUNA_V1,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Longest row in tokens; needs --model.")
    ] = None,
    images: Annotated[bool, typer.Option(help="Whether to open the images.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes that check rows.")] = 0,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    name: NameOption = None,
    revision: RevisionOption = None,
    format_: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report every row that cannot be trained on, with its number; exit code 2 if there is one."""
    from hyperllava_hf.data import DataSource
    from hyperllava_hf.data.data_check import check_data

    processor = None
    if model is not None:
        from hyperllava_hf.checkpoints import resolve_checkpoint
        from hyperllava_hf.processing import HyperLlavaProcessor

        processor = HyperLlavaProcessor.from_pretrained(resolve_checkpoint(model))
    form = format_.value if format_ else None
    sources = [DataSource(path, image_folder, split, name, revision, form) for path in data]
    reports = []
    for source in sources:
        report = check_data(
            source,
            processor=processor,
            template=template.value,
            max_length=max_length,
            opens_images=images,
            num_workers=workers,
            progress=sys.stderr.isatty(),
        )
        reports.append(report)
        if not as_json:
            print_report(report)
    if as_json:
        print(json.dumps([describe_report(report) for report in reports], indent=2, default=str))
    raise_if_bad(reports)


def print_report(report: "DataReport") -> None:
    """Print every bad row, then the summary."""
    for row in report.bad_rows:
        print(row)
    if report.error is not None:
        print(f"{report.source}: {report.error}")
        return
    print(
        f"{report.source}: {report.num_rows:,} rows, {len(report.bad_rows):,} bad; of the others "
        f"{report.num_text_only:,} text only, {report.num_one_image:,} with one image, "
        f"{report.num_several_images:,} with several"
    )
    if report.tokens:
        shares = ", ".join(
            f"{'longest' if p == 100 else f'{p} %'} {count:,}" for p, count in report.tokens.items()
        )
        print(f"tokens: {shares}; {report.num_cut:,} rows are cut")
    if report.num_duplicate_ids:
        shown = ", ".join(map(repr, report.duplicate_ids))
        print(f"note: {report.num_duplicate_ids:,} rows repeat the id of another, such as {shown}")


def describe_report(report: "DataReport") -> dict[str, Any]:
    """Turn a report into what JSON holds."""
    return {**asdict(report), "is_good": report.is_good}


def raise_if_bad(reports: "list[DataReport]") -> None:
    """End with the exit code of bad input if a row or a file is bad."""
    num_bad = sum(len(report.bad_rows) for report in reports)
    num_rows = sum(report.num_rows for report in reports)
    num_unread = sum(report.error is not None for report in reports)
    found = []
    if num_bad:
        found.append(f"{num_bad:,} of {num_rows:,} rows are bad")
    if num_unread:
        found.append(f"{num_unread} of {len(reports)} files cannot be read")
    if found:
        raise ValueError(f"{' and '.join(found)}; each is named above")
