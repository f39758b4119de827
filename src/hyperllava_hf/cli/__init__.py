"""The hyperllava command. Nothing here imports torch before a command needs it."""

from hyperllava_hf.cli.app import main

__all__ = ["main"]
