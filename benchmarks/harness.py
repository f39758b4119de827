"""Measuring several variants side by side: turns, ratios of one round, rows of a CSV.

Machines drift, so no variant is timed in a block of its own: a round runs every variant once, in an
order that changes from round to round, and what is reported is the median over the rounds of each
variant's time divided by the baseline's time in the same round, with 20th and 80th percentile.
"""

import argparse
import csv
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
BASELINE = "llava"


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# "cpu" counts this process's own seconds: on one thread of a busy machine the better clock.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(run: Callable[[], Any], device: str, clock: str = "wall") -> float:
    """Return the seconds of one run, the device's work included."""
    synchronize(device)
    start = CLOCKS[clock]()
    run()
    synchronize(device)
    return CLOCKS[clock]() - start


def order_turns(names: list[str], number: int) -> list[str]:
    """Order one round: every variant stands at every place, and before and after every other."""
    shift = number // 2 % len(names)
    turned = names[shift:] + names[:shift]
    return turned if number % 2 == 0 else turned[::-1]


def take_turns(
    runs: dict[str, Callable[[], float]], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Run every variant once a round.

    Args:
        runs: Variants by name; each returns its seconds.
        rounds: Rounds that count.
        warmup: Rounds before those.

    Returns:
        dict[str, list[float]]: Seconds by variant, one entry a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()  # a collection would be billed to whoever's turn it is
    try:
        for number in range(-warmup, rounds):
            for name in order_turns(list(runs), number % (2 * len(runs))):
                found = runs[name]()
                if number >= 0:
                    seconds[name].append(found)
    finally:
        gc.enable()
    return seconds


def interleave(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    device: str,
    warmup: int = 2,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Time every variant once a round.

    Args:
        runs: Variants by name.
        rounds: Rounds that count.
        device: Torch device.
        warmup: Rounds before those.
        clock: A key of `CLOCKS`.

    Returns:
        dict[str, list[float]]: Seconds by variant, one entry a round.
    """
    timed = {name: lambda run=run: measure(run, device, clock) for name, run in runs.items()}
    return take_turns(timed, rounds, warmup)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that a share of all values lies below, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summarize(seconds: dict[str, list[float]], name: str) -> dict[str, str]:
    """Return a variant's time and its ratio to the baseline of the same round, as cells."""
    ratios = [own / base for own, base in zip(seconds[name], seconds[BASELINE], strict=True)]
    cells = {}
    for key, values, scale, digits in (("ms", seconds[name], 1e3, 3), ("ratio", ratios, 1, 4)):
        cells[f"{key}_median"] = f"{scale * statistics.median(values):.{digits}f}"
        cells[f"{key}_p20"] = f"{scale * percentile(values, 0.2):.{digits}f}"
        cells[f"{key}_p80"] = f"{scale * percentile(values, 0.8):.{digits}f}"
    return {**cells, "rounds": str(len(ratios))}


def name_device(device: str) -> str:
    """Name the machine: the GPU, or the processor and how many threads were used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line]
    name = names[0].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def describe_run(device: str) -> dict[str, str]:
    """Return what every row says of its run: where, with what, when, by which command."""
    git = ["git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, "
    return {
        "device": name_device(device),
        "versions": versions + f"Python {platform.python_version()}",
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
    }


# What a row is about; a new row replaces the old one about the same.
ABOUT = ("device", "size", "question", "variant", "attention", "compiled", "dtype", "batch")
ABOUT += ("positions",)


def _get_subject(row: dict[str, str]) -> tuple[str | None, ...]:
    return tuple(row.get(key) for key in ABOUT)


def write_rows(name: str, rows: list[dict[str, str]], folder: Path = RESULTS) -> None:
    """Write one question's rows; rows about something else, from earlier runs, stay.

    Args:
        name: The question, "bench_..." without a suffix.
        rows: Rows with the same keys.
        folder: Where the CSV stands.
    """
    path = folder / f"{name}.csv"
    kept = []
    if path.exists():
        own = {_get_subject(row) for row in rows}
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if _get_subject(row) not in own]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: row.get(key, "") for key in rows[0]} for row in kept] + rows)


def parse_options(description: str, rounds: int, **more: Any) -> argparse.Namespace:
    """Read the options that every question has.

    Args:
        description: Of the question.
        rounds: Default number of rounds.
        **more: Further options by name, with their defaults.

    Returns:
        argparse.Namespace: device, size, rounds, output and the further ones.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("cpu", "7B", "tiny"), help="cpu, or 7B on a GPU")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: a busy machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    if options.size is None:
        options.size = "7B" if options.device.startswith("cuda") else "cpu"
    return options


def report(row: dict[str, str]) -> None:
    """Show a row's point while the rest is still being measured."""
    hidden = ("device", "versions", "commit", "date", "command")
    shown = [f"{key} {value}" for key, value in row.items() if key not in hidden and value]
    print(" | ".join(shown), file=sys.stderr, flush=True)
