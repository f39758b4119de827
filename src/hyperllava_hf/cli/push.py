"""hyperllava push: a checkpoint's folder to the Hub, as one commit."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperllava_hf.cli.options import JsonOption

if TYPE_CHECKING:
    from hyperllava_hf.hub.push import PushReport

EXAMPLES = """Examples:

hyperllava push ./my-model user/my-model --dry-run

hyperllava push ./my-model user/my-model --private --base-model llava-hf/llava-1.5-7b-hf"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("push", epilog=EXAMPLES, short_help="Push a checkpoint to the Hub.")(push)


def format_size(num_bytes: int) -> str:
    """Write a number of bytes for people."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def print_report(report: "PushReport") -> None:
    """Print the files with their sizes, and on stderr what the user should know."""
    for file in report.plan.files:
        made = "  (made by the push)" if file.is_generated else ""
        print(f"{format_size(file.num_bytes):>10}  {file.path}{made}")
    print(f"{format_size(report.plan.num_bytes):>10}  in {len(report.plan.files)} files")
    for path, reason in report.plan.left_out.items():
        print(f"Left out: {path} ({reason}).", file=sys.stderr)
    for path in report.deleted:
        print(f"Replaced: {path} is gone from the repository.", file=sys.stderr)
    for note in [*report.plan.notes, *report.notes]:
        print(f"Note: {note}", file=sys.stderr)
    if report.commit is None:
        print(f"Dry run: nothing was sent to {report.plan.repo_id}.", file=sys.stderr)
    else:
        print(report.pull_request or f"{report.url} at {report.commit}")


def build_json(report: "PushReport") -> dict[str, object]:
    """Build what --json prints."""
    files = [
        {"path": file.path, "num_bytes": file.num_bytes, "generated": file.is_generated}
        for file in report.plan.files
    ]
    return {
        "repository": report.plan.repo_id,
        "url": report.url,
        "commit": report.commit,
        "pull_request": report.pull_request,
        "files": files,
        "left_out": report.plan.left_out,
        "deleted": report.deleted,
        "notes": [*report.plan.notes, *report.notes],
    }


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of model and processor.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository, as user/name; created if missing.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; created if missing.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes; send nothing, need no token.")
    ] = False,
    message: Annotated[str, typer.Option(help="Title of the commit.")] = "Upload HyperLLaVA",
    base_model: Annotated[
        list[str] | None,
        typer.Option(help="Model that the weights were made from, for the card; repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Dataset it was trained on, for the card; repeatable.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, if the base hands on none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Push a checkpoint to the Hub: weights, code, processor, card and licence in one commit.

    The token is that of `hf auth login` or HF_TOKEN. Run an interrupted push again: what has
    arrived is not sent twice.
    """
    from hyperllava_hf.hub.push import push as push_folder

    report = push_folder(
        folder,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        commit_message=message,
        base_models=base_model,
        datasets=dataset,
        licence=licence,
    )
    if as_json:
        print(json.dumps(build_json(report), indent=2))
    else:
        print_report(report)
