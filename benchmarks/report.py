"""Write the tables of docs/performance.md anew from the committed results.

Each table stands between `<!-- table: name -->` and `<!-- end -->`. A test holds the document equal
to what this writes.

    python benchmarks/report.py
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- table: (bench-\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NO_ROWS = "Not measured.\n"

Row = dict[str, str]


def read_rows(name: str) -> list[Row]:
    """Read one question's rows; none where it was not measured."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def render_table(header: list[str], lines: list[list[str]], rows: list[Row]) -> str:
    """Render a table and, below it, where, when and by which command its rows were measured."""
    if not rows:
        return NO_ROWS
    text = "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])
    names = ("command", "device", "versions", "commit", "date")
    runs = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    for command, device, versions, commit, date in runs:
        text += f"\n`{command}`; {device}; {versions}; commit {commit}, {date}.\n"
    return text


def group(rows: list[Row], names: list[str]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Group rows by what they share, then by variant."""
    grouped: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[name] for name in names), {})[row["variant"]] = row
    return grouped


def show_ratio(row: Row) -> str:
    """Show the median ratio, its spread, and whether it meets its goal."""
    text = f"{float(row['ratio_median']):.3f} ({float(row['ratio_p20']):.3f}-"
    text += f"{float(row['ratio_p80']):.3f})"
    if row.get("goal"):
        is_met = float(row["ratio_median"]) <= float(row["goal"])
        text += f", goal {float(row['goal']):.3f}: {'met' if is_met else 'missed'}"
    return text


def render_prefill() -> str:
    """Render prefill and time to first token."""
    rows = read_rows("bench_prefill")
    keys = ["size", "question", "attention", "compiled", "batch", "positions"]
    header = ["", "batch", "positions", "LLaVA, ms", "`prompt` / LLaVA", "`token` / LLaVA", "share"]
    lines = []
    for key, found in group(rows, keys).items():
        size, question, attention, compiled, batch, positions = key
        how = f"{size}, {question}, {attention}{', compiled' if compiled == 'True' else ''}"
        ratios = [show_ratio(found[name]) for name in ("prompt", "token")]
        share = f"{100 * float(found['token']['token_share']):.1f} %"
        base = f"{float(found['llava']['ms_median']):.0f}"
        lines.append([how, batch, positions, base, *ratios, share])
    return render_table(header, lines, rows)


def render_decode() -> str:
    """Render decoding."""
    rows = read_rows("bench_decode")
    header = ["", "batch", "positions", "LLaVA, tokens/s", "`prompt` / LLaVA", "`token` / LLaVA"]
    header += ["time / time to read the weights: LLaVA, `prompt`, `token`"]
    lines = []
    for key, found in group(rows, ["size", "question", "attention", "batch", "positions"]).items():
        size, question, attention, batch, positions = key
        ratios = [show_ratio(found[name]) for name in ("prompt", "token")]
        limits = [row["ratio_to_bytes_limit"] for row in found.values()]
        limit = ", ".join(f"{float(value):.2f}" for value in limits if value)
        speed = f"{float(found['llava']['tokens_a_second']):.1f}"
        lines.append([f"{size}, {question}, {attention}", batch, positions, speed, *ratios, limit])
    return render_table(header, lines, rows)


def render_memory() -> str:
    """Render peak memory above LLaVA's."""
    rows = read_rows("bench_memory")
    header = ["", "batch", "positions", "LLaVA's call, MiB", "`prompt` above, MiB (goal)"]
    header += ["`token` above, MiB (goal)"]
    lines = []
    for key, found in group(rows, ["size", "dtype", "question", "batch", "positions"]).items():
        size, dtype, question, batch, positions = key
        cells = []
        for name in ("prompt", "token"):
            row = found[name]
            is_met = float(row["above_llava_mib"]) <= float(row["goal_mib"])
            met = "met" if is_met else "missed"
            cells.append(f"{row['above_llava_mib']} ({row['goal_mib']}: {met})")
        base = found["llava"]["call_peak_mib"]
        lines.append([f"{size}, {dtype}, {question}", batch, positions, base, *cells])
    return render_table(header, lines, rows)


def render_load() -> str:
    """Render loading."""
    rows = read_rows("bench_load")
    header = ["", "LLaVA, s", "`prompt` / LLaVA", "`token` / LLaVA"]
    lines = []
    for key, found in group(rows, ["size", "dtype", "question"]).items():
        base = f"{float(found['llava']['ms_median']) / 1e3:.2f}"
        ratios = [show_ratio(found[name]) for name in ("prompt", "token")]
        lines.append([", ".join(key), base, *ratios])
    return render_table(header, lines, rows)


def render_processor() -> str:
    """Render the processor."""
    rows = read_rows("bench_processor")
    header = ["batch", "LLaVA's, images/s", "ours, images/s", "time / LLaVA's"]
    lines = [
        [
            batch,
            found["llava"]["images_a_second"],
            found["hyperllava"]["images_a_second"],
            show_ratio(found["hyperllava"]),
        ]
        for (batch,), found in group(rows, ["batch"]).items()
    ]
    return render_table(header, lines, rows)


def render_launches() -> str:
    """Render what a decoded token launches, before and after."""
    rows = read_rows("profile_decode")
    header = ["dtype", "LLaVA", "`prompt`", "`token`"]
    lines = []
    for (dtype,), found in group(rows, ["dtype"]).items():
        cells = [
            f"{found[name]['launches']} ({float(found[name]['ratio']):.3f})"
            for name in ("prompt", "token")
        ]
        lines.append([dtype, found["llava"]["launches"], *cells])
    return render_table(header, lines, rows)


def render_train() -> str:
    """Render a training step of experts alone beside LoRA's and full tuning's."""
    rows = read_rows("bench_train")
    header = ["", "batch", "trained, millions", "step, ms", "step / LoRA's", "peak / LoRA's (goal)"]
    lines = []
    for row in rows:
        memory = f"{float(row['memory_ratio']):.3f}"
        if row["memory_goal"]:
            is_met = float(row["memory_ratio"]) <= float(row["memory_goal"])
            memory += f" ({row['memory_goal']}: {'met' if is_met else 'missed'})"
        name, time = f"{row['size']}, {row['variant']}", f"{float(row['ms_median']):.0f}"
        millions = f"{float(row['trained_millions']):.1f}"
        lines.append([name, row["batch"], millions, time, show_ratio(row), memory])
    return render_table(header, lines, rows)


def render_kernel() -> str:
    """Render the fused kernels beside eager and compiled code."""
    rows = read_rows("bench_kernel")
    header = ["", "batch", "positions", "eager, us", "compiled / eager", "kernels / eager"]
    lines = []
    for key, found in group(rows, ["question", "batch", "positions"]).items():
        own = found["eager"]
        base = f"{1e3 * float(own['ms_median']) / int(own['calls']):.1f}"
        lines.append([*key, base, show_ratio(found["compiled"]), show_ratio(found["triton"])])
    return render_table(header, lines, rows)


def render_attention() -> str:
    """Render which attention implementations ran, what they dispatched, and what the rest lack."""
    rows = read_rows("bench_attention")
    header = ["", "implementation", "ran", "logits from eager's", "equal tokens", "time / eager"]
    lines, refused = [], {}
    for row in rows:
        if row["status"] != "runs":
            refused[row["attention"]] = row["status"].partition(":")[0]
            continue
        name = f"{row['size']}, {row['dtype']}, {row['variant']}"
        cells = [row["kernels"], row["logit_difference"], row["equal_tokens"], show_ratio(row)]
        lines.append([name, f"`{row['attention']}`", *cells])
    text = render_table(header, lines, rows)
    if refused:
        named = ", ".join(f"`{name}` ({error})" for name, error in refused.items())
        text += f"\nNot to be had on that machine: {named}.\n"
    return text


TABLES: dict[str, Callable[[], str]] = {
    "bench-attention": render_attention,
    "bench-decode": render_decode,
    "bench-kernel": render_kernel,
    "bench-launches": render_launches,
    "bench-load": render_load,
    "bench-memory": render_memory,
    "bench-prefill": render_prefill,
    "bench-processor": render_processor,
    "bench-train": render_train,
}


def update_text(text: str) -> str:
    """Return a document with its benchmark tables written anew."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(update_text(text), encoding="utf-8")


if __name__ == "__main__":
    main()
