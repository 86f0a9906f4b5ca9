"""`vramancer cache`: what this program keeps to be had again, and its removal: runtimes, and weights from a master."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from commands import options
from commands.enter_runtime import cache_folder
from commands.phrases import plural, size
from commands.terminal import out, plain, show, write_json
from vramancer_cli.launcher import cache as runtimes
from vramancer_cli.launcher.bundle import bundle
from vramancer_cli.launcher.cache import Unpacked
from vramancer_cli.runtime import kept_weights
from vramancer_cli.runtime.kept_weights import Kept

EXAMPLES = """[bold]Examples[/]

  vramancer cache
  vramancer cache --json
  vramancer cache clean          removes the runtimes of older versions
  vramancer cache clean --all    this version's too: the next start unpacks it again
  vramancer cache clean --weights    weights that came from a master: they are fetched again when needed

The one-file program unpacks its runtime once; a worker keeps the weights of its layers. VRM_CACHE_DIR names another
folder. Models from the hub lie in the hub's own cache: 'hf cache'."""

app = typer.Typer(
    name="cache",
    help="Show the unpacked runtimes, and the weights that came from a master.",
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
    """Show the unpacked runtimes of the one-file program and the weights that came from a master, and remove them.

    Models that were downloaded lie elsewhere, in the hub's own cache.
    """
    if invocation.invoked_subcommand is not None:
        return
    folder = cache_folder(flags)
    found, kept = runtimes.runtimes(folder, _current()), kept_weights.kept(kept_weights.shelf_in(folder))
    if as_json:
        parts = {"runtimes": [asdict(runtime) for runtime in found], "weights": [asdict(model) for model in kept]}
        write_json({"folder": str(folder), **parts})
        return
    counts = f"{plural(len(found), 'runtime')}, weights of {plural(len(kept), 'model')}"
    out().print(f"{folder}: {counts}", markup=False, soft_wrap=True)
    if found:
        show(_table(found))
    if kept:
        show(_weights_table(kept))


@app.command(epilog=EXAMPLES)
@options.spread
def clean(
    *,
    everything: Annotated[bool, options.option("--all", "This version's runtime too.")] = False,
    weights: Annotated[bool, options.option("--weights", "Weights that came from a master, no runtimes.")] = False,
    as_json: options.Json = False,
    flags: options.RuntimeFlags,
) -> None:
    """Remove the runtimes of older versions, or weights. What is in use is kept."""
    folder = cache_folder(flags)
    if weights:
        _clean_weights(kept_weights.shelf_in(folder), as_json=as_json)
        return
    doomed = [runtime for runtime in runtimes.runtimes(folder, _current()) if everything or not runtime.current]
    removed = [runtime for runtime in doomed if runtimes.remove(folder, runtime.name)]
    busy = [runtime for runtime in doomed if runtime not in removed]
    if as_json:
        write_json(_outcome(folder, [runtime.name for runtime in removed], [runtime.name for runtime in busy]))
        return
    freed_bytes = sum(runtime.size_bytes for runtime in removed)
    _tell(plural(len(removed), "runtime"), freed_bytes, [f"{r.name} is in use, and was kept." for r in busy])


def _clean_weights(shelf: Path, *, as_json: bool) -> None:
    doomed = kept_weights.kept(shelf)
    removed = [model for model in doomed if kept_weights.remove(shelf, model.digest)]
    busy = [model for model in doomed if model not in removed]
    if as_json:
        write_json(_outcome(shelf, [model.digest for model in removed], [model.digest for model in busy]))
        return
    _tell(
        f"Weights of {plural(len(removed), 'model')}",
        sum(model.size_bytes for model in removed),
        [f"Those of {_model_name(model)} are in use, and were kept." for model in busy],
    )


def _outcome(folder: Path, removed: list[str], in_use: list[str]) -> dict[str, Any]:
    return {"folder": str(folder), "removed": removed, "in_use": in_use}


def _tell(removed: str, freed_bytes: int, sentences: list[str]) -> None:
    for sentence in (f"{removed} removed, {size(freed_bytes)} freed.", *sentences):
        out().print(sentence, markup=False)


def _current() -> str | None:
    frozen = bundle()
    return frozen.payload.name if frozen and frozen.payload else None


def _table(found: list[Unpacked]) -> Table:
    table = _headed("runtime", "size", "version", "state")
    for runtime in found:
        version = "this one" if runtime.current else "another"
        table.add_row(runtime.name, size(runtime.size_bytes), version, "in use" if runtime.in_use else "idle")
    return table


def _weights_table(kept: list[Kept]) -> Table:
    table = _headed("weights of", "size", "digest", "state")
    for model in kept:
        state = "in use" if model.in_use else "idle"
        table.add_row(Text(_model_name(model)), size(model.size_bytes), model.digest[:8], state)
    return table


def _headed(*headings: str) -> Table:
    table = Table(box=None, pad_edge=True)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "size" else "left")
    return table


def _model_name(model: Kept) -> str:
    return plain(model.name) or f"model {model.digest[:8]}"
