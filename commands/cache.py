"""`vramancer cache`: the unpacked runtimes of the one-file program, and the removal of old ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from commands import options
from commands.enter_runtime import cache_folder
from commands.phrases import plural, size
from commands.terminal import out, show, write_json
from vramancer_cli.launcher import cache as runtimes
from vramancer_cli.launcher.bundle import bundle
from vramancer_cli.launcher.cache import Unpacked

EXAMPLES = """[bold]Examples[/]

  vramancer cache
  vramancer cache --json
  vramancer cache clean          removes the runtimes of older versions
  vramancer cache clean --all    this version's too: the next start unpacks it again

The one-file program unpacks its runtime once. VRM_CACHE_DIR names another folder."""

app = typer.Typer(
    name="cache",
    help="Show the unpacked runtimes of the one-file program.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    invoke_without_command=True,
)


@app.callback()
@options.spread
def cache(
    invocation: typer.Context,
    *,
    as_json: options.Json = False,
    flags: options.RuntimeFlags,
) -> None:
    """Show the unpacked runtimes of the one-file program, and remove old ones.

    Models that were downloaded lie elsewhere, in the hub's own cache.
    """
    if invocation.invoked_subcommand is not None:
        return
    folder = cache_folder(flags)
    found = runtimes.runtimes(folder, _current())
    if as_json:
        write_json({"folder": str(folder), "runtimes": [asdict(runtime) for runtime in found]})
        return
    out().print(f"{folder}: {plural(len(found), 'runtime')}", markup=False, soft_wrap=True)
    if found:
        show(_table(found))


@app.command(epilog=EXAMPLES)
@options.spread
def clean(
    *,
    everything: Annotated[bool, options.option("--all", "This version's runtime too.")] = False,
    as_json: options.Json = False,
    flags: options.RuntimeFlags,
) -> None:
    """Remove the runtimes of older versions. One that a node runs out of is kept."""
    folder = cache_folder(flags)
    doomed = [runtime for runtime in runtimes.runtimes(folder, _current()) if everything or not runtime.current]
    removed = [runtime for runtime in doomed if runtimes.remove(folder, runtime.name)]
    _tell(folder, removed, [runtime for runtime in doomed if runtime not in removed], as_json=as_json)


def _tell(folder: Path, removed: list[Unpacked], kept: list[Unpacked], *, as_json: bool) -> None:
    if as_json:
        names: dict[str, Any] = {
            "removed": [runtime.name for runtime in removed], "in_use": [runtime.name for runtime in kept],
        }  # fmt: skip
        write_json({"folder": str(folder), **names})
        return
    freed = size(sum(runtime.size_bytes for runtime in removed))
    out().print(f"{plural(len(removed), 'runtime')} removed, {freed} freed.", markup=False)
    for runtime in kept:
        out().print(f"{runtime.name} is in use, and was kept.", markup=False)


def _current() -> str | None:
    frozen = bundle()
    return frozen.payload.name if frozen and frozen.payload else None


def _table(found: list[Unpacked]) -> Table:
    table = Table(box=None, pad_edge=True)
    for heading in ("runtime", "size", "version", "state"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    for runtime in found:
        version = "this one" if runtime.current else "another"
        table.add_row(runtime.name, size(runtime.size_bytes), version, "in use" if runtime.in_use else "idle")
    return table
