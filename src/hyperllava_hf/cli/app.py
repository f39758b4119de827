"""The hyperllava command line: its commands, its exit codes, and how errors reach the user.

A command is a file of this folder with a `register(app)` function, named in COMMANDS. It parses and
prints; library code does the work, and is imported inside the command's function so that
`hyperllava --help` starts without torch. Commands contain no try/except: what the user can put
right arrives here as ValueError, OSError or lack of memory and leaves as one line on stderr.

Exit codes: 0 done, 1 a bug, 2 the user's input, 130 interrupted.
"""

import logging
import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer

from hyperllava_hf import __version__

COMMANDS = ("ask", "convert", "data", "experts", "inspect", "push", "train")

DONE, BUG, USER_INPUT, INTERRUPTED = 0, 1, 2, 130

# What the parser raises for a wrong command line. Named through the public BadParameter because
# the class itself lives in click or inside typer, depending on typer's version.
ParserError: Any = typer.BadParameter.__mro__[2]


def print_version(wanted: bool) -> None:
    """Print the package's version and stop."""
    if wanted:
        typer.echo(f"hyperllava {__version__}")
        raise typer.Exit


def start(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """HyperLLaVA: LLaVA with adapters that are generated for every input."""


def build_app() -> typer.Typer:
    """Build the command-line parser with every command.

    Returns:
        The typer application.
    """
    app = typer.Typer(
        name="hyperllava",
        callback=start,
        add_completion=False,
        # In panels of 80 columns long options would be cut, and three of them look alike.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        import_module(f"hyperllava_hf.cli.{name}").register(app)
    return app


def print_error(message: str) -> None:
    """Print a message to stderr as one line, whatever line breaks it had."""
    print("hyperllava: " + " ".join(message.split()), file=sys.stderr)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device or the machine lacked memory, whoever noticed it."""
    # torch's own class, a RuntimeError, is known by its name so that torch is not imported for it;
    # its CPU allocator raises a bare RuntimeError.
    by_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return by_torch or isinstance(error, MemoryError)


def is_for_the_user(error: Exception) -> bool:
    """Tell whether the user, and not a programmer, can put an error right."""
    # A library that says what to install; Python's own, of a wrong import, names the module.
    if isinstance(error, ImportError) and error.name is None:
        return True
    return is_out_of_memory(error) or isinstance(error, ValueError | OSError)


def run(arguments: list[str]) -> None:
    """Parse a command line and run its command; every error leaves as it was raised."""
    # An unreachable Hub would be reported once for each of five attempts, before the error itself.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Where it is installed, importing peft imports it, and it then tells of kernels for 4 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    command = typer.main.get_command(build_app())
    # Calling the application instead would turn errors into exit codes of typer's own.
    try:
        with command.make_context("hyperllava", arguments) as context:
            command.invoke(context)
    finally:
        # A closed stdout is to be met here, not while Python shuts down.
        sys.stdout.flush()


def discard_stdout() -> None:
    """Send what is still buffered nowhere, where the reader (head, a pager) has had enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `hyperllava`; None reads them from the process.

    Returns:
        The exit code.
    """
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except typer.Exit:
        pass
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        return INTERRUPTED
    except ParserError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "hyperllava"
        print_error(f"{error.format_message().rstrip('.')}. See '{command} --help'.")
        return USER_INPUT
    except BrokenPipeError:
        discard_stdout()
    except SystemExit as stop:
        # rich meets the closed stdout first, and leaves with a code of its own.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
    except Exception as error:
        if is_for_the_user(error):
            print_error(f"{'out of memory: ' * is_out_of_memory(error)}{error}")
            return USER_INPUT
        traceback.print_exc()
        print_error("this is a bug in hyperllava_hf: please report it with the lines above")
        return BUG
    return DONE
