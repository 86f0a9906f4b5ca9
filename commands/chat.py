"""`vramancer chat`: ask once, or talk."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from commands import options
from commands.conversation import Conversation, show_figures
from commands.local_node import client_for
from commands.talk import talk
from vramancer_cli.errors import UsageError

EXAMPLES = """[bold]Examples[/]

  vramancer chat
  vramancer chat "What is a layer?"
  git diff | vramancer chat --system "Review this diff."
  vramancer chat --temperature 0 "Say it the same way every time."

The answer goes to stdout, the figures to stderr."""

QUESTION_LIMIT: Final = 1024 * 1024


def parse_temperature(text: str) -> float:
    """Raises UsageError."""
    try:
        temperature = float(text)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature <= 2:
        raise UsageError(f"'{text}' is not a temperature.", hint="It is a number from 0 to 2.")
    return temperature


@options.spread
def chat(
    *,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What to ask; without it, talk.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, options.option("--model", "The model to ask.", metavar="ID", unset="the one served")
    ] = None,
    system: Annotated[str | None, options.option("--system", "What it should be or do.", metavar="TEXT")] = None,
    temperature: Annotated[
        float | None,
        options.option("--temperature", "0 to 2; 0 is always the same.", metavar="T", parser=parse_temperature),
    ] = None,
    flags: options.ApiFlags,
) -> None:
    """Ask the model, and read the answer as it comes.

    With a QUESTION, or one on stdin, it answers and ends.
    Without, it talks: Ctrl-C stops the answer, not the talk.
    """
    conversation = Conversation(client_for(flags), model, temperature, system)
    if question is None and sys.stdin.isatty():
        talk(conversation)
        return
    show_figures(conversation.ask(question if question is not None else _piped()))


def _piped() -> str:
    """The question on stdin. Raises UsageError for nothing, or for more than 1 MiB."""
    text = sys.stdin.read(QUESTION_LIMIT + 1).strip()
    if not text:
        raise UsageError("There is no question on stdin.", hint='Write it there, or ask: vramancer chat "..."')
    if len(text) > QUESTION_LIMIT:
        raise UsageError("The question on stdin is longer than 1 MiB.")
    return text
