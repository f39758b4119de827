"""List every command's arguments and options, one a line.

Renew the golden list with: python tests/cli/golden_options.py > tests/cli/golden_options.txt
"""

from collections.abc import Iterator
from typing import Any

import typer

from hyperllava_hf.cli.app import build_app


def walk_commands(command: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
    """Walk over a command and those below it, with the words that call each."""
    yield " ".join(words), command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk_commands(below, [*words, name])


def list_options() -> list[str]:
    """List them as `command name default`, in the order of the help."""
    lines = []
    for words, command in walk_commands(typer.main.get_command(build_app()), []):
        for parameter in command.params:
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            required = "required" if parameter.required else f"default={parameter.default}"
            lines.append(f"{words or command.name} {names} {required}")
    return lines


if __name__ == "__main__":
    print("\n".join(list_options()))
