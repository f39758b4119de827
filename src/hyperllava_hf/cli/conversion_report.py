"""How a conversion's plan and its result are printed."""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperllava_hf.conversion import ConversionReport


def print_plan(report: "ConversionReport") -> None:
    """Print every tensor of a plan: its key in the source and in the result, and what is done."""
    for tensor in report.planned:
        shape = "x".join(str(length) for length in tensor.shape)
        source = tensor.source or "(fresh)"
        print(
            f"{source} -> {tensor.target}  {shape} {tensor.dtype}  {tensor.num_bytes:,} bytes  "
            f"{tensor.operation}"
        )
    print(
        f"{len(report.planned)} tensors, {report.num_bytes:,} bytes: {report.layout} -> {report.to}"
    )
    for note in report.notes:
        print(f"Note: {note}")


def print_report(report: "ConversionReport") -> None:
    """Print a table of what was done."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=str(report.destination))
    table.add_row("layout", f"{report.layout} -> {report.to}")
    operations = Counter(tensor.operation.split(" ")[0] for tensor in report.planned)
    done = ", ".join(f"{operation} {count}" for operation, count in operations.most_common())
    table.add_row("tensors", f"{len(report.planned)} ({done})")
    table.add_row("weights", f"{report.num_bytes:,} bytes")
    table.add_row("files", f"{len(report.outputs)} written, {len(report.inputs)} read")
    if report.verification is None:
        table.add_row("verified", "no (--no-verify)")
    else:
        table.add_row("verified", "\n".join(report.verification.sentences))
        table.add_row("", f"in {report.verification.seconds:.1f} s")
    console = Console(highlight=False)
    console.print(table)
    for note in report.notes:
        console.print(f"Note: {note}")
