"""List every command's arguments and options, one a line.

Renew the golden list with: python tests/cli/golden_options.py > tests/cli/golden_options.txt
"""

import typer

from hyperllava_hf.cli.app import build_app


def list_options() -> list[str]:
    """List them as `command name default`, in the order of the help."""
    lines = []
    group = typer.main.get_command(build_app())
    for command in [group, *group.commands.values()]:
        for parameter in command.params:
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            required = "required" if parameter.required else f"default={parameter.default}"
            lines.append(f"{command.name} {names} {required}")
    return lines


if __name__ == "__main__":
    print("\n".join(list_options()))
