"""hyperllava ask: questions about images, answered as they are generated."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from hyperllava_hf.cli.options import DeviceOption, Dtype, DtypeOption, JsonOption, RevisionOption

if TYPE_CHECKING:
    from hyperllava_hf.chat import Chat, Sampling

EXAMPLES = """Examples:

hyperllava ask photo.png "What digit is in the top left?"

hyperllava ask before.png after.png --model user/name --interactive"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("ask", epilog=EXAMPLES, short_help="Ask questions about images.")(ask)


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin that hold something; a person who types sees a prompt on stderr."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def print_answer(chat: "Chat", question: str, sampling: "Sampling", as_json: bool) -> None:
    """Ask one question and print the answer: as it comes, or as one line of JSON."""
    if as_json:
        answer = chat.ask(question, sampling)
        print(json.dumps({"question": question, **asdict(answer)}), flush=True)
    else:
        answer = chat.ask(question, sampling, lambda piece: print(piece, end="", flush=True))
        print(flush=True)
    if not answer.complete:
        print(
            f"The answer was cut after {answer.new_tokens} tokens; --max-new-tokens allows more.",
            file=sys.stderr,
        )


def ask(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files or URLs.", show_default=False),
    ] = None,
    *,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="What to ask, in quotes. --interactive can do without."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id.", show_default="the bundled checkpoint"),
    ] = None,
    revision: RevisionOption = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Go on: one question a line from stdin.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Stop an answer after this many tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sample at this temperature; 0 takes the likeliest.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from this share of the probability.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from this many tokens; 0 means all.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Ask questions about images; the answer appears as it is generated."""
    from hyperllava_hf.chat import Chat, Sampling, split_images_and_question

    images, first_question = split_images_and_question([*(images or []), question], interactive)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    chat = Chat.load(model, images, revision, device, dtype)
    first_questions = [] if first_question is None else [first_question]
    for text in chain(first_questions, read_lines() if interactive else []):
        print_answer(chat, text, sampling, as_json)
