"""The options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """The precisions a model can be loaded in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit, for a model on the Hub.")
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to run: auto, cpu, cuda, cuda:1, mps and so on.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision; auto is the checkpoint's own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
