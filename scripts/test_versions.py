"""Test the oldest and newest release of both transformers lines against one another.

    python scripts/test_versions.py

`make test-versions` runs this. Each release gets an environment of its own under .nox, loads the
bundled checkpoint, answers and saves; then each loads what each saved, with this package and as
remote code. Writes docs/results/versions.csv, from which the README's table is made; exits with 1
if anything failed.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "versions.csv"
JOB = ROOT / "scripts" / "version_job.py"
# The oldest of each line; the newest are the ones that CI pins.
OLDEST = ("4.57.0", "5.0.0")
CODES = ("package", "remote")
# Same weights and operations in fp32 (measured: 0); a tensor left out shifts logits by 1 and more.
TOLERANCE = 1e-4
COLUMNS = ("reader", "writer", "outcome", "max_logit_difference", "torch", "tokenizers")
COLUMNS += ("huggingface_hub", "date")


def list_versions():
    """Return the oldest and newest release of each line, ascending."""
    pins = [
        re.search(r"^transformers==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        for path in sorted((ROOT / "constraints").glob("transformers-*.txt"))
    ]
    return sorted((*OLDEST, *pins), key=lambda name: [int(part) for part in name.split(".")])


def build_environment(release):
    """Install a release with this package; return its interpreter. What exists is kept."""
    folder = ROOT / ".nox" / f"versions-{release}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pins = ["-c", str(ROOT / "constraints" / "common.txt")]
        subprocess.run([*pip, *pins, f"transformers=={release}", "-e", str(ROOT)], check=True)
        ready.touch()
    return python


def run_job(python, scratch, *arguments):
    """Run the job in a fresh process; return what it printed, or the last line of its error."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "hf_home"),
        "HF_MODULES_CACHE": str(scratch / "modules" / "-".join(map(str, arguments[-2:]))),
    }
    child = subprocess.run(
        [str(python), str(JOB), *map(str, arguments)],
        env=env,
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1]), None
    lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
    return None, lines[-1][:200]


def judge(found):
    """Say in a word whether a reader found what the writer had computed."""
    if not found["answers_equal"]:
        return "another answer"
    return "equal" if found["max_logit_difference"] <= TOLERANCE else "other logits"


def compare(python, scratch, folder):
    """Load a folder in both ways; return the outcome and the largest difference of logits."""
    differences = []
    for code in CODES:
        found, error = run_job(python, scratch, "read", folder, code)
        if error is None and judge(found) == "equal":
            differences.append(found["max_logit_difference"])
        else:
            return f"{code}: {error or judge(found)}", ""
    return "equal", f"{max(differences):.1e}"


def main():
    versions = list_versions()
    pythons = {release: build_environment(release) for release in versions}
    date = datetime.now(UTC).date().isoformat()
    scratch = Path(tempfile.mkdtemp(prefix="hyperllava-versions-"))
    rows, installed, failures = [], {}, {}
    for release, python in pythons.items():
        print(f"{release}: load, answer, save", file=sys.stderr)
        installed[release], failures[release] = run_job(
            python, scratch, "write", scratch / f"by-{release}"
        )
    for reader, python in pythons.items():
        for writer in versions:
            print(f"{reader} loads what {writer} saved", file=sys.stderr)
            difference = ""
            outcome = failures[reader] or failures[writer]
            if outcome is None:
                outcome, difference = compare(python, scratch, scratch / f"by-{writer}")
            names = {k: v for k, v in (installed[reader] or {}).items() if k in COLUMNS}
            rows.append(
                {
                    "reader": reader,
                    "writer": writer,
                    "outcome": outcome,
                    "max_logit_difference": difference,
                    "date": date,
                    **names,
                }
            )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shutil.rmtree(scratch)
    failed = [row for row in rows if row["outcome"] != "equal"]
    for row in failed:
        print(f"{row['reader']} on {row['writer']}'s: {row['outcome']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
