"""Make the bundled checkpoint from nothing, on two CPU cores.

    python -m hyperllava_hf.training.digits_checkpoint

Every stage that is finished leaves a folder under --work and is skipped when the command is run
again; an interrupted stage starts anew. Tower and decoder train at the same time, one core each.
The last step writes the model, its processor, the training log, the metrics on test and the card
into --output, the package's own folder by default.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..evaluation import digits
from ..modeling import HyperLlavaForConditionalGeneration
from ..processing import HyperLlavaProcessor
from .digits_recipe import STAGE_NAMES, DigitsRecipe, build_stage_runs
from .stage_folders import is_complete, read_record, run_once

CONCURRENT_STAGES = ("tower", "decoder")
BUNDLED = Path(__file__).parents[1] / "hyperllava-digits"
WORK = Path("build") / "hyperllava-digits-stages"
LOG_COLUMNS = ("stage", "step", "loss", "learning_rate", "grad_norm")


def run_concurrently(stages: Sequence[str], work: Path) -> None:
    """Run stages at the same time, each in a process of its own with its share of the cores.

    Args:
        stages: Names of stages.
        work: Where the stages' folders lie.

    Raises:
        RuntimeError: If a stage failed.
    """
    threads = max(1, (os.cpu_count() or 1) // len(stages))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    module = "hyperllava_hf.training.digits_checkpoint"
    command = [sys.executable, "-m", module, "--work", str(work), "--stage"]
    processes = [subprocess.Popen([*command, stage], env=environment) for stage in stages]
    codes = [process.wait() for process in processes]
    failed = [stage for stage, code in zip(stages, codes, strict=True) if code != 0]
    if failed:
        raise RuntimeError(
            f"found stages {failed} failed, expected them to finish; their errors are above, and "
            "running the command again continues with them"
        )


def run_stages(work: Path, stages: Sequence[str] = STAGE_NAMES) -> None:
    """Run every stage that has not finished.

    Args:
        work: Where the stages' folders lie.
        stages: Names of stages, in order.
    """
    pending = [stage for stage in stages if not is_complete(work / stage)]
    together = [stage for stage in pending if stage in CONCURRENT_STAGES]
    if len(together) > 1 and (os.cpu_count() or 1) > 1:
        run_concurrently(together, work)
    for stage, run in build_stage_runs(DigitsRecipe(), work).items():
        if stage in stages and run_once(work / stage, run):
            print(f"{stage}: done", file=sys.stderr)


def write_training_log(work: Path, path: Path) -> None:
    """Write the log of all stages as one table.

    Args:
        work: Where the stages' folders lie.
        path: The csv file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for stage in STAGE_NAMES:
            writer.writerows({"stage": stage, **row} for row in read_record(work / stage)["log"])


def write_training_stages(work: Path, path: Path) -> None:
    """Write what each stage was run with and how long it took.

    Args:
        work: Where the stages' folders lie.
        path: The json file.
    """
    names = ("settings", "seconds", "threads")
    records = {stage: read_record(work / stage) for stage in STAGE_NAMES}
    stages = {stage: {name: record[name] for name in names} for stage, record in records.items()}
    path.write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(work: Path, output: Path, card: Path | None) -> None:
    """Write the finished model's folder.

    Args:
        work: Where the stages' folders lie.
        output: The folder.
        card: The model card, or None.
    """
    model = HyperLlavaForConditionalGeneration.from_pretrained(work / STAGE_NAMES[-1])
    model.save_pretrained(output)
    HyperLlavaProcessor.from_pretrained(work / STAGE_NAMES[-1]).save_pretrained(output)
    write_training_log(work, output / "training_log.csv")
    write_training_stages(work, output / "training_stages.json")
    if card is not None and card.is_file():
        shutil.copyfile(card, output / "README.md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the recipe.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(description="Train the bundled HyperLLaVA from nothing.")
    parser.add_argument("--output", type=Path, default=BUNDLED, help="the finished checkpoint")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the stages")
    parser.add_argument("--stage", choices=STAGE_NAMES, help="run this stage alone, then stop")
    parser.add_argument("--card", type=Path, default=Path("MODEL_CARD.md"))
    parser.add_argument("--no-metrics", action="store_true", help="do not read the test split")
    options = parser.parse_args(arguments)
    run_stages(options.work, (options.stage,) if options.stage else STAGE_NAMES)
    if options.stage:
        return
    torch.set_num_threads(os.cpu_count() or 1)
    write_checkpoint(options.work, options.output, options.card)
    if not options.no_metrics:
        metrics = options.output / "metrics.json"
        digits.main(["--model", str(options.output), "--split", "test", "--output", str(metrics)])


if __name__ == "__main__":
    main()
