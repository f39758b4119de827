"""Ranks of a distributed job: one child process each, all of which must succeed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 240


def run_ranks(module: str, arguments: list[list[str]], environments: list[dict[str, str]]):
    """Run a module of the tests once a rank, at the same time.

    Args:
        module: The module's dotted name.
        arguments: Command-line arguments of each rank.
        environments: What each rank's environment has besides this process's.

    Returns:
        What each rank printed.
    """
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, *own],
            env={**shared, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own, environment in zip(arguments, environments, strict=True)
    ]
    try:
        printed = [child.communicate(timeout=TIME_LIMIT)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    codes = [child.returncode for child in children]
    assert codes == [0] * len(children), "\n".join(text[-3000:] for text in printed)
    return printed
