"""The typer application: all verbs, in the order in which a newcomer needs them. Never imports torch or transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from commands import (
    audit,
    cache,
    chat,
    config,
    doctor,
    drain,
    invite,
    join,
    keys,
    nodes,
    service,
    start,
    status,
    stop,
    trace,
)  # fmt: skip
from commands.setting_sources import name_source
from vramancer_cli.errors import UsageError
from vramancer_cli.launcher.bundle import this_build

app = typer.Typer(
    name="vramancer",
    help="One language model over all your machines: together they hold what none of them holds alone.",
    epilog="""[bold]Two machines, two commands[/]

  vramancer start --master          on the first: shows a pairing code
  vramancer join --auto-discover    on every other: asks for it

Then open http://localhost:5000, or ask: vramancer chat "What is a layer?"
Each verb has examples of its own: vramancer start --help""",
    rich_markup_mode="rich",
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(this_build().sentence())
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _vramancer(  # pyright: ignore[reportUnusedFunction]  # typer calls it
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version  # its callback did the work
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(verb: Callable[..., Any], epilog: str, panel: str) -> None:
    app.command(epilog=epilog, rich_help_panel=panel)(verb)


_add(start.start, start.EXAMPLES, "Machines")
_add(join.join, join.EXAMPLES, "Machines")
_add(stop.stop, stop.EXAMPLES, "Machines")
_add(invite.invite, invite.EXAMPLES, "Machines")
_add(drain.drain, drain.EXAMPLES, "Machines")
app.add_typer(nodes.app, rich_help_panel="Look and ask")
_add(status.status, status.EXAMPLES, "Look and ask")
_add(chat.chat, chat.EXAMPLES, "Look and ask")
_add(doctor.doctor, doctor.EXAMPLES, "Look and ask")
_add(trace.trace, trace.EXAMPLES, "Look and ask")
_add(config.config, config.EXAMPLES, "Look and ask")

app.add_typer(keys.app, rich_help_panel="Machines")
_add(audit.audit, audit.EXAMPLES, "This installation")
app.add_typer(cache.app, rich_help_panel="This installation")
app.add_typer(service.app, rich_help_panel="This installation")


def run(argv: list[str]) -> int:
    """Runs the verb that `argv` names (without the program's name); the exit code.

    Raises what the verb raises, and UsageError for a wrong command line, so that there is one error door.
    """
    try:
        code = typer.main.get_command(app).main(argv, prog_name="vramancer", standalone_mode=False)
    except typer.TyperException as error:
        name_source(error)
        raise _usage_error(error) from error
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _usage_error(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else "vramancer"
    message = error.format_message().replace("Value error, ", "")  # pydantic's words, not the parser's
    return UsageError(message if message.endswith((".", "?")) else message + ".", hint=f"See '{verb} --help'.")
