"""The fused kernels: interpreted on a CPU, compiled for a GPU, and run on one where asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "interpreted_cases.py"
ROOT = Path(__file__).parents[2]


def run_python(*arguments, **environment):
    """A child process: what Triton compiles or interprets is decided when it is first imported."""
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**plain, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_cases(**environment):
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = run_python("-m", "pytest", *options, str(CASES), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_interpreted_kernels_are_the_eager_code():
    assert run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="") > 40


@pytest.mark.gpu
def test_kernels_on_a_gpu_are_the_eager_code():
    assert run_cases() > 40


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """Triton carries its own compiler, down to the binary of a Hopper GPU."""
    script = str(Path(__file__).parent / "compile_kernels.py")
    done = run_python(script, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    had_loaded_a_kernel, *compiled = done.stdout.split()
    assert had_loaded_a_kernel == "False"
    assert len(compiled) == len(set(compiled)) == 19
