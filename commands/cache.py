"""`vramancer cache`: what this program keeps to be had again, and its removal: runtimes, weights from a master, and
folders made of GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

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
from vramancer_cli.runtime import kept_gguf, kept_weights
from vramancer_cli.runtime.kept_gguf import KeptFolder
from vramancer_cli.runtime.kept_weights import Kept

T = TypeVar("T")

EXAMPLES = """[bold]Examples[/]

  vramancer cache
  vramancer cache --json
  vramancer cache clean          removes runtimes of older versions, and folders of GGUF files that are gone
  vramancer cache clean --all    this version's too: the next start unpacks it again
  vramancer cache clean --weights    weights that came from a master: they are fetched again when needed
  vramancer cache clean --gguf       folders made of GGUF files: they are made again when needed

The one-file program unpacks its runtime once; a worker keeps the weights of its layers, a master config and tokenizer
of a GGUF file. VRM_CACHE_DIR names another folder. Models from the hub lie in the hub's own cache: 'hf cache'."""

app = typer.Typer(
    name="cache",
    help="Show the unpacked runtimes, the weights that came from a master, and what was made of GGUF files.",
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
    """Show the unpacked runtimes of the one-file program, the weights that came from a master and what was made of
    GGUF files, and remove them.

    Models that were downloaded lie elsewhere, in the hub's own cache.
    """
    if invocation.invoked_subcommand is not None:
        return
    folder = cache_folder(flags)
    found, kept = runtimes.runtimes(folder, _current()), kept_weights.kept(kept_weights.shelf_in(folder))
    made = kept_gguf.kept(kept_gguf.shelf_in(folder))
    if as_json:
        parts = {"runtimes": found, "weights": kept, "gguf": made}
        write_json({"folder": str(folder), **{name: [asdict(item) for item in part] for name, part in parts.items()}})
        return
    counts = f"{plural(len(found), 'runtime')}, weights of {plural(len(kept), 'model')}, {_folders(len(made))}"
    out().print(f"{folder}: {counts}", markup=False, soft_wrap=True)
    if found:
        show(_table(found))
    if kept:
        show(_weights_table(kept))
    if made:
        show(_gguf_table(made))


@app.command(epilog=EXAMPLES)
@options.spread
def clean(
    *,
    everything: Annotated[bool, options.option("--all", "This version's runtime too.")] = False,
    weights: Annotated[bool, options.option("--weights", "Weights that came from a master, no runtimes.")] = False,
    gguf: Annotated[bool, options.option("--gguf", "All folders made of GGUF files, no runtimes.")] = False,
    as_json: options.Json = False,
    flags: options.RuntimeFlags,
) -> None:
    """Remove the runtimes of older versions and what was made of GGUF files that are gone; or weights, or all that was
    made of GGUF files. What is in use is kept.
    """
    folder = cache_folder(flags)
    shelf = kept_gguf.shelf_in(folder)
    if weights:
        _clean_weights(kept_weights.shelf_in(folder), as_json=as_json)
    elif gguf:
        _clean_gguf(shelf, as_json=as_json)
    else:
        lost = [made for made in kept_gguf.kept(shelf) if made.is_orphan]
        orphans, _ = _remove(lost, lambda made: kept_gguf.remove(shelf, made.id))
        _clean_runtimes(folder, orphans, everything=everything, as_json=as_json)


def _clean_runtimes(folder: Path, orphans: list[KeptFolder], *, everything: bool, as_json: bool) -> None:
    doomed = [runtime for runtime in runtimes.runtimes(folder, _current()) if everything or not runtime.current]
    removed, busy = _remove(doomed, lambda runtime: runtimes.remove(folder, runtime.name))
    if as_json:
        gone = [*(runtime.name for runtime in removed), *(f"{kept_gguf.SHELF_NAME}/{made.id}" for made in orphans)]
        write_json(_outcome(folder, gone, [runtime.name for runtime in busy]))
        return
    freed_bytes = sum(item.size_bytes for item in (*removed, *orphans))
    what = plural(len(removed), "runtime") + (f" and {_folders(len(orphans))}" if orphans else "")
    _tell(what, freed_bytes, [f"{r.name} is in use, and was kept." for r in busy])


def _clean_gguf(shelf: Path, *, as_json: bool) -> None:
    removed, busy = _remove(kept_gguf.kept(shelf), lambda made: kept_gguf.remove(shelf, made.id))
    if as_json:
        write_json(_outcome(shelf, [made.id for made in removed], [made.id for made in busy]))
        return
    kept = [f"That of {_file_name(made)} is in use, and was kept." for made in busy]
    _tell(_folders(len(removed)), sum(made.size_bytes for made in removed), kept)


def _clean_weights(shelf: Path, *, as_json: bool) -> None:
    removed, busy = _remove(kept_weights.kept(shelf), lambda model: kept_weights.remove(shelf, model.digest))
    if as_json:
        write_json(_outcome(shelf, [model.digest for model in removed], [model.digest for model in busy]))
        return
    _tell(
        f"Weights of {plural(len(removed), 'model')}",
        sum(model.size_bytes for model in removed),
        [f"Those of {_model_name(model)} are in use, and were kept." for model in busy],
    )


def _remove(doomed: list[T], remove: Callable[[T], bool]) -> tuple[list[T], list[T]]:
    """Those that are gone now, and those that are in use."""
    removed = [item for item in doomed if remove(item)]
    return removed, [item for item in doomed if item not in removed]


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


def _gguf_table(made: list[KeptFolder]) -> Table:
    table = _headed("made of", "size", "folder", "state")
    for folder in made:
        state = "in use" if folder.in_use else "its file is gone" if folder.is_orphan else "idle"
        table.add_row(Text(_file_name(folder)), size(folder.size_bytes), folder.id[:8], state)
    return table


def _folders(count: int) -> str:
    return f"{plural(count, 'folder')} made of GGUF files"


def _file_name(folder: KeptFolder) -> str:
    return plain(Path(folder.file).name) or f"an unknown file ({folder.id[:8]})"


def _headed(*headings: str) -> Table:
    table = Table(box=None, pad_edge=True)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "size" else "left")
    return table


def _model_name(model: Kept) -> str:
    return plain(model.name) or f"model {model.digest[:8]}"
