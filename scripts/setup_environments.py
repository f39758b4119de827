"""Create the environments that make uses, or say in one line what the machine lacks.

Run by any python3: it uses the standard library alone and no recent syntax, so that the version
itself can be the thing that is missing.
"""

import importlib.util
import os
import re
import subprocess
import sys

OLDEST = (3, 11)
TOOLS = ".venv"
INSTALL_LOG = os.path.join(".nox", "install.log")


def stop(found, remedy):
    sys.exit(f"make: {found}: {remedy}")


def check_interpreter():
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        needed = ".".join(map(str, OLDEST))
        stop(
            f"{sys.executable} is Python {found}, needed is {needed} or newer",
            "install one and name it, as in 'make PYTHON=python3.12 test'",
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            stop(
                f"{sys.executable} lacks the module {module}",
                "install it (on Debian and Ubuntu: the package python3-venv)",
            )


def find_cause(output):
    """Find in pip's output the pinned packages that it did not find, or else its first error."""
    unfound = re.findall(r"The user requested \(constraint\) (\S+)", output)
    if unfound:
        return "pip finds no " + ", ".join(sorted(set(unfound))) + " for this Python"
    errors = re.findall(r"^ *ERROR: (.*)", output, re.MULTILINE)
    return errors[0] if errors else "no error was printed"


def run_logged(command):
    """Run a command, show and log what it says, and stop with the cause if it fails."""
    os.makedirs(os.path.dirname(INSTALL_LOG), exist_ok=True)
    lines = []
    with open(INSTALL_LOG, "a", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
        )
        for line in child.stdout:
            log.write(line)
            sys.stderr.write(line)
            lines.append(line)
        if child.wait() != 0:
            stop(
                f"installing failed ({find_cause(''.join(lines))})",
                f"check the network and pip's settings; the whole output is in {INSTALL_LOG}",
            )


def setup(lines):
    python = os.path.join(TOOLS, "bin", "python")
    if not os.path.exists(python):
        run_logged([sys.executable, "-m", "venv", TOOLS])
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_logged([*pip, "-c", "constraints/common.txt", "nox"])
    sessions = [f"tests({line})" for line in lines]
    sys.stderr.write("Installing torch, transformers and the tools: a few minutes.\n")
    run_logged([python, "-m", "nox", "--install-only", "--session", *sessions])


if __name__ == "__main__":
    check_interpreter()
    setup(sys.argv[1:])
