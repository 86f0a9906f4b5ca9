"""`vramancer invite`: a fresh pairing code for one more machine, or a join token for a script."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

from rich.text import Text

from commands import options
from commands.local_node import client_for
from commands.phrases import duration
from commands.terminal import notes, out, plain, write_json
from vramancer_cli.errors import UsageError

EXAMPLES = """[bold]Examples[/]

  vramancer invite
  ssh attic vramancer join desk --code $(vramancer invite)
  (umask 077; vramancer invite --token > token)
  vramancer invite --token --reusable --hours 2      for many machines

Into a pipe it writes the code or the token alone. Only the master can invite."""

HOURS: Final = 24.0


@options.spread
def invite(
    *,
    token: Annotated[bool, options.option("--token", "A join token for a script, instead of a code.")] = False,
    reusable: Annotated[bool, options.option("--reusable", "The token lets any number of machines in.")] = False,
    hours: Annotated[
        float | None, options.option("--hours", "How long the token lives.", metavar="HOURS", unset="24")
    ] = None,
    as_json: options.Json = False,
    flags: options.ApiFlags,
) -> None:
    """Show a new pairing code, for one more machine.

    With --token it is a join token: longer, good for a day, and for scripts.
    """
    if token:
        _tell_token(client_for(flags).make_token(reusable=reusable, hours=HOURS if hours is None else hours), as_json)
        return
    if reusable or hours is not None:
        raise UsageError("--reusable and --hours belong to --token.", hint="Add --token, or leave them out.")
    code, valid_s = client_for(flags).invite()
    if as_json:
        write_json({"code": code, "valid_s": valid_s})
    elif sys.stdout.isatty():
        _show(plain(code), valid_s)
    else:
        sys.stdout.write(f"{plain(code)}\n")


def _show(code: str, valid_s: float) -> None:
    console = out()
    console.print(Text.assemble((code, "bold"), f"   for one machine, valid for {duration(valid_s)}"))
    console.print(Text.assemble(("There: ", "dim"), f"vramancer join --auto-discover --code {code}"), soft_wrap=True)


def _tell_token(made: dict[str, Any], as_json: bool) -> None:
    """The token to stdout, what it is good for to stderr: a script keeps the one, a person reads the other."""
    if as_json:
        write_json(made)
        return
    sys.stdout.write(f"{plain(str(made['token']))}\n")
    sys.stdout.flush()
    if sys.stderr.isatty():
        many = "any number of machines" if made["reusable"] else "one machine"
        notes().print(
            f"For {many}, valid for {duration(float(made['valid_s']))}; it is shown this once.\n"
            "There: VRM_JOIN_TOKEN=… vramancer join HOST",
            soft_wrap=True,
            markup=False,
        )
