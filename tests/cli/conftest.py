"""The command as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def run_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `hyperllava ARGUMENTS` as a process of its own, with its streams apart."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hyperllava_hf.cli", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "100"}
        options = {"stdin": subprocess.DEVNULL, **options}
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, **options
        )

    return run
