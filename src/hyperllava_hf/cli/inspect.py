"""hyperllava inspect: what a checkpoint's experts are, and what they do to an input."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperllava_hf.cli.options import DeviceOption, Dtype, DtypeOption, JsonOption, RevisionOption

if TYPE_CHECKING:
    from rich.table import Table

    from hyperllava_hf.inspection.checkpoint_summary import CheckpointSummary
    from hyperllava_hf.inspection.expert_shifts import ExpertShift

EXAMPLES = """Examples:

hyperllava inspect user/name

hyperllava inspect ./my-model --image photo.png --question "Describe the image." --plot shift.png"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "inspect", epilog=EXAMPLES, short_help="Show a checkpoint's experts, and what they do."
    )(inspect)


def build_summary_table(summary: "CheckpointSummary") -> "Table":
    """Build the table of the experts' configuration and the parameters of each part."""
    from rich.table import Table

    from hyperllava_hf.inspection.checkpoint_summary import format_blocks

    table = Table(show_header=False, title=summary.checkpoint)
    blocks = summary.language_expert_blocks
    share = f"{len(blocks)} of {summary.num_blocks}"
    table.add_row("visual expert", f"in the projector: {summary.visual_expert}")
    table.add_row("language experts", f"in blocks {format_blocks(blocks)} ({share})")
    table.add_row("weights come from", summary.expert_source)
    table.add_row("guidance", summary.guidance)
    table.add_row("scope", summary.guidance_scope)
    if summary.guidance_pooling:
        table.add_row("pooling", summary.guidance_pooling)
    table.add_row("dimensions", f"m = {summary.expert_input_dim}, r = {summary.expert_hidden_dim}")
    table.add_row("stored as", ", ".join(summary.dtypes), end_section=True)
    total = summary.num_parameters
    for part, count in summary.parameters.items():
        table.add_row(part, f"{count:>14,}  {count / total:8.3%}")
    experts = summary.num_expert_parameters
    table.add_section()
    table.add_row("all experts", f"{experts:>14,}  {experts / total:8.3%}")
    table.add_row("whole model", f"{total:>14,}")
    return table


def build_shift_table(shifts: "list[ExpertShift]") -> "Table":
    """Build the table of each expert's shift."""
    from rich.table import Table

    table = Table(title="Root mean square of each expert's shift, and of what it shifts")
    table.add_column("expert", no_wrap=True)
    for heading in ("output", "shift", "shift/output", "at image", "at text"):
        table.add_column(heading, justify="right")
    for shift in shifts:
        ratios = [shift.ratio, shift.image_ratio, shift.text_ratio]
        cells = ["-" if ratio is None else f"{100 * ratio:.3g} %" for ratio in ratios]
        table.add_row(shift.expert, f"{shift.output_rms:.4g}", f"{shift.shift_rms:.4g}", *cells)
    return table


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder or Hub id.", show_default="the bundled checkpoint"
        ),
    ] = None,
    revision: RevisionOption = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Image file or URL; may be given several times.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Measure what the experts do when this is asked.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the shifts into this PNG file.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show a checkpoint's experts; with a question, also how far each shifts its block's output."""
    if question is None and (image or plot):
        raise typer.BadParameter("--image and --plot need a --question")

    from hyperllava_hf.inspection.checkpoint_summary import summarize_checkpoint

    summary = summarize_checkpoint(model, revision)
    shifts = None
    if question is not None:
        from hyperllava_hf.inspection.expert_shifts import measure_expert_shifts
        from hyperllava_hf.inspection.shift_plot import check_plot_target, save_shift_plot

        if plot is not None:
            check_plot_target(plot)
        shifts = measure_expert_shifts(model, image or [], question, revision, device, dtype)
        if plot is not None:
            save_shift_plot(shifts, plot)
            print(f"Wrote {plot}", file=sys.stderr)
    if as_json:
        rows = None if shifts is None else [asdict(shift) for shift in shifts]
        print(json.dumps({**asdict(summary), "shifts": rows}, indent=2))
    else:
        print_report(summary, shifts)


def print_report(summary: "CheckpointSummary", shifts: "list[ExpertShift] | None") -> None:
    """Print the tables and the notes."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(build_summary_table(summary))
    for note in summary.notes:
        console.print(f"Note: {note}")
    if shifts is not None:
        console.print(build_shift_table(shifts))
