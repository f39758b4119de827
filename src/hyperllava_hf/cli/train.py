"""hyperllava train: the paper's two stages on LLaVA data, from a recipe."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperllava_hf.cli.options import JsonOption

if TYPE_CHECKING:
    from hyperllava_hf.training.runs import TrainingReport

EXAMPLES = """Examples:

hyperllava train align --config align-7b-24gb --data blip_laion_cc_sbu_558k.json --output run-1

hyperllava train recipes"""
ALIGN_EXAMPLES = """Examples:

hyperllava train align --config align-digits --data scenes/captions.json --output run-1

hyperllava train align --config align-7b --model ./llava-7b --data captions.json --dry-run"""
INSTRUCT_EXAMPLES = """Examples:

hyperllava train instruct --config instruct-digits --data scenes/conversations.json --output run-2

hyperllava train instruct --config instruct-7b-24gb --data mix.json --output run-2 --resume"""
RECIPES_EXAMPLES = """Examples:

hyperllava train recipes

hyperllava train recipes --json"""

ConfigOption = Annotated[
    str, typer.Option("--config", help="A bundled recipe's name, or a .toml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", help="LLaVA JSON(L) file or Hub data set; may be repeated."),
]
ImagesOption = Annotated[
    str | None, typer.Option(help="What image paths in the data are relative to.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Folder or Hub id of a LLaVA or HyperLLaVA.", show_default="the recipe's"),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="The run's folder: checkpoints, model, record.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest complete checkpoint, if any.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be trained, and train nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    about = "Train the paper's two stages on LLaVA data, from a recipe."
    group = typer.Typer(help=about, epilog=EXAMPLES)
    group.command(
        "align", epilog=ALIGN_EXAMPLES, short_help="Stage 1: projector and visual expert."
    )(align)
    group.command("instruct", epilog=INSTRUCT_EXAMPLES, short_help="Stage 2: instruction tuning.")(
        instruct
    )
    group.command("recipes", epilog=RECIPES_EXAMPLES)(recipes)
    app.add_typer(group, name="train")


def print_progress(text: str) -> None:
    """Print a message to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_report(report: "TrainingReport", settings: Any, as_json: bool) -> None:
    """Print what was done: the model's folder, or everything as JSON."""
    if as_json:
        values = {
            "settings": settings.to_dict(),
            "model": str(report.model) if report.model else None,
            "num_rows": report.num_rows,
            "num_steps": report.num_steps,
            "batch": vars(report.plan),
            "groups": [vars(count) for count in report.counts],
            "losses": report.losses,
        }
        print(json.dumps(values))
    elif report.model is not None:
        print(report.model)


def run_stage(stage: str, context: typer.Context, config: str, overrides: list[str] | None) -> None:
    """Build the settings of a stage and train, or say what would be trained."""
    from hyperllava_hf.training.recipes import build_settings
    from hyperllava_hf.training.runs import plan_run, train

    options = context.params
    given = {
        "model": options["model"],
        "data": options["data"],
        "image_folder": options["image_folder"],
        "merge": options.get("merge"),
    }
    changes = {name: value for name, value in given.items() if value or value == ""}
    settings = build_settings(config, overrides or [], stage_wanted=stage, **changes)
    output = options["output"]
    if options["dry_run"]:
        print_report(plan_run(settings, print_progress), settings, options["as_json"])
        return
    if output is None:
        raise typer.BadParameter("--output is missing: the folder that the run writes")
    report = train(settings, output, resume=options["resume"], say=print_progress)
    print_report(report, settings, options["as_json"])


def align(
    context: typer.Context,
    config: ConfigOption,
    overrides: SetOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    image_folder: ImagesOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: train projector and visual expert on images and their captions."""
    run_stage("align", context, config, overrides)


def instruct(
    context: typer.Context,
    config: ConfigOption,
    overrides: SetOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    image_folder: ImagesOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Leave a whole model where a LoRA was trained.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 2: train projector, experts and, as the recipe says, the language model."""
    run_stage("instruct", context, config, overrides)


def recipes(as_json: JsonOption = False) -> None:
    """List the bundled recipes."""
    from hyperllava_hf.training.recipes import list_recipes

    found = list_recipes()
    if as_json:
        print(json.dumps(found))
        return
    width = max(map(len, found))
    for name, about in found.items():
        print(f"{name:<{width}}  {about}")
