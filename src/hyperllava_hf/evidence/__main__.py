"""Train the arms, measure them, and write the report.

    python -m hyperllava_hf.evidence                     everything, in the order of the groups
    python -m hyperllava_hf.evidence --groups ablation   one group
    python -m hyperllava_hf.evidence --smoke --work DIR --output DIR   a miniature, in seconds

Whatever is finished is kept under --work and skipped when the command runs again. The test split
is read by --steps test, once a run, after all runs have been trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .arms import GROUPS
from .pipeline import STEPS, Pipeline
from .settings import FULL, SMOKE


def _read_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hyperllava_hf.evidence",
        description="Train guided experts and their controls alike, and report what comes out.",
    )
    parser.add_argument("--work", type=Path, help="what is kept (build/evidence)")
    parser.add_argument("--output", type=Path, help="folder of the report (docs)")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--arms", nargs="+", help="train these arms of the groups alone")
    parser.add_argument("--seeds", nargs="+", type=int, help="train these seeds alone")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--jobs", type=_read_count, default=2, help="runs at a time, one core each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a miniature that proves nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that are asked for.

    Args:
        arguments: Command line; that of the process when None.

    Raises:
        SystemExit: If the command line or the folders do not fit, with one line that says why.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.smoke and not (options.work and options.output):
        parser.error("--smoke needs --work and --output of its own: its results are no evidence")
    pipeline = Pipeline(
        settings=SMOKE if options.smoke else FULL,
        work=options.work or Path("build") / "evidence",
        output=options.output or Path("docs"),
        jobs=options.jobs,
        device=options.device,
    )
    try:
        pipeline.select(options.groups, options.arms, options.seeds)
        for step in STEPS:
            if step in options.steps:
                print(f"{step} ...", file=sys.stderr, flush=True)
                getattr(pipeline, step)()
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
