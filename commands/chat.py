"""`vramancer chat`: ask once, or talk."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
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


def number_between(low: float, high: float, what: str) -> Callable[[str], float]:
    """Reads an option's text. The reader raises UsageError."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise UsageError(f"'{text}' is not {what}.", hint=f"It is a number from {low:g} to {high:g}.")
        return value

    return parse


def whole_number(low: int, high: int, what: str) -> Callable[[str], int]:
    """The same for whole numbers."""

    def parse(text: str) -> int:
        digits = text.strip().removeprefix("-")
        value = int(text) if digits.isdecimal() and len(digits) < 20 else None
        if value is None or not low <= value <= high:
            raise UsageError(f"'{text}' is not {what}.", hint=f"It is a whole number from {low} to {high}.")
        return value

    return parse


TEMPERATURE: Final = number_between(0, 2, "a temperature")
TOP_P: Final = number_between(0, 1, "a share")
SEED: Final = whole_number(-(2**63), 2**63 - 1, "a seed")
MAX_TOKENS: Final = whole_number(1, 2**31 - 1, "a number of tokens")


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
        options.option("--temperature", "0 to 2; 0 is always the same.", metavar="T", parser=TEMPERATURE),
    ] = None,
    top_p: Annotated[
        float | None,
        options.option("--top-p", "Draw from the likeliest tokens of this share.", metavar="P", parser=TOP_P),
    ] = None,
    seed: Annotated[
        int | None, options.option("--seed", "The same seed, the same answer.", metavar="N", parser=SEED)
    ] = None,
    max_tokens: Annotated[
        int | None, options.option("--max-tokens", "The longest answer.", metavar="N", parser=MAX_TOKENS)
    ] = None,
    flags: options.ApiFlags,
) -> None:
    """Ask the model, and read the answer as it comes.

    With a QUESTION, or one on stdin, it answers and ends.
    Without, it talks: Ctrl-C stops the answer, not the talk.
    """
    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": max_tokens}
    conversation = Conversation(client_for(flags), model, sampling, system)
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
