"""The interactive side of `vramancer chat`: greeting, slash commands, and a loop that a Ctrl-C does not end."""

from __future__ import annotations

import contextlib
from typing import Final

from rich.text import Text

from commands.conversation import Conversation, show_figures
from commands.phrases import plural
from commands.terminal import notes, plain, show_error
from vramancer_cli.errors import SHOWN

FIRST_QUESTIONS: Final = (
    "What is VRAMancer?",
    "How do I add a second machine?",
    "What happens when a machine dies in the middle of an answer?",
)
HELP: Final = """/reset  forget what was said
/exit   leave (Ctrl-D too)
/help   this list
Ctrl-C  stop the answer"""


def talk(conversation: Conversation) -> None:
    """Until /exit or Ctrl-D. Raises DaemonUnreachableError where nothing answers at the start."""
    with contextlib.suppress(ImportError):  # not on Windows, whose console edits lines by itself
        import readline  # noqa: F401  # arrow keys and history in input()
    _greet(conversation)
    while (line := _read()) is not None:
        if line.startswith("/"):
            if not _command(conversation, line):
                return
        elif line:
            _answer(conversation, _chosen(conversation, line))


def _greet(conversation: Conversation) -> None:
    status = conversation.client.status()
    console = notes()
    where = f" on {plural(len(status.nodes), 'node')} of '{plain(status.cluster)}'."
    console.print(Text.assemble((plain(conversation.model or status.model), "bold"), where), soft_wrap=True)
    if status.reason:
        console.print(plain(status.reason), style="yellow", markup=False)
    console.print("Ask anything, or type a number; /help shows the commands.", style="dim")
    for number, question in enumerate(FIRST_QUESTIONS, start=1):
        console.print(f"  {number}  {question}", markup=False)


def _read() -> str | None:
    """A line; "" after Ctrl-C at the prompt; None at the end."""
    try:
        return input("> ").strip()
    except KeyboardInterrupt:
        notes().print("\n/exit leaves.", style="dim")
        return ""
    except EOFError:
        notes().print()
        return None


def _chosen(conversation: Conversation, line: str) -> str:
    """The example that a number names, as long as nothing was said."""
    if conversation.messages or line not in {str(n) for n in range(1, len(FIRST_QUESTIONS) + 1)}:
        return line
    question = FIRST_QUESTIONS[int(line) - 1]
    notes().print(f"> {question}", style="dim", markup=False)
    return question


def _command(conversation: Conversation, line: str) -> bool:
    """Whether the talk goes on."""
    match line.split()[0].lower():
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.reset()
            notes().print("Forgotten.", style="dim")
        case "/help":
            notes().print(HELP, markup=False)
        case unknown:
            notes().print(f"{plain(unknown)} is no command.\n{HELP}", markup=False)
    return True


def _answer(conversation: Conversation, question: str) -> None:
    try:
        show_figures(conversation.ask(question, stoppable=True))
    except SHOWN as error:
        show_error(error)
    notes().print()
