"""`vramancer invite`: a fresh pairing code for one more machine."""

from __future__ import annotations

import sys

from rich.text import Text

from commands import options
from commands.local_node import client_for
from commands.phrases import duration
from commands.terminal import out, plain, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer invite
  ssh attic vramancer join desk --code $(vramancer invite)

Into a pipe it writes the code alone. Only the master can invite."""


@options.spread
def invite(*, as_json: options.Json = False, flags: options.ApiFlags) -> None:
    """Show a new pairing code, for one more machine."""
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
