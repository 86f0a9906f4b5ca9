"""`vramancer doctor`: is this installation whole, and what can this machine do.

Never imports torch or transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from commands import options
from commands.enter_runtime import enter_runtime
from commands.glyphs import glyphs_for
from commands.phrases import plural
from commands.terminal import notes, plain, show, write_json
from vramancer_cli.launcher.bundle import this_build
from vramancer_cli.settings import API_PORT, NODE_PORT, parse_port

if TYPE_CHECKING:
    from vramancer_cli.doctor.finding import Finding
    from vramancer_cli.doctor.surroundings import Surroundings

EXAMPLES = """[bold]Examples[/]

  vramancer doctor
  vramancer doctor --families        imports the code of every model family
  vramancer doctor --json | jq .ok

Nothing is changed. Exits with 1 when a check failed; warnings are no failure."""

Families = Annotated[bool, options.option("--families", "Also import the code of every supported model family.")]
Port = Annotated[int, options.setting("--port", "Port of API and page.", metavar="PORT", parser=parse_port)]
NodePort = Annotated[
    int, options.setting("--node-port", "Port for the other nodes.", metavar="PORT", parser=parse_port)
]

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_STATE_CELLS: Final = 9
_NAME_CELLS: Final = 15


@options.spread
def doctor(
    *,
    families: Families = False,
    as_json: options.Json = False,
    port: Port = API_PORT,
    node_port: NodePort = NODE_PORT,
    state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER,
    runtime: options.RuntimeFlags,
) -> None:
    """Check this installation, and what this machine can do."""
    enter_runtime(runtime)
    from vramancer_cli.doctor.surroundings import Surroundings

    findings: list[Finding] = []

    def tell(found: Sequence[Finding]) -> None:
        findings.extend(found)
        for finding in () if as_json else found:
            show(FindingLine(finding))

    _examine(Surroundings(options.state_folder(state_dir), port, node_port), tell)
    if families:
        tell(_families())
    if as_json:
        write_json(_report(findings))
    else:
        show(_summary(findings))
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


def _examine(around: Surroundings, tell: Callable[[Sequence[Finding]], None]) -> None:
    from vramancer_cli.doctor.examination import checks

    for check in checks(this_build().sentence(), around):
        with _spinner(f"{check.name}…"):
            finding = check.run()
        tell([finding])


def _families() -> Sequence[Finding]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from vramancer_cli.doctor.families import examine_families

    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("families…", total=None)
        return examine_families(
            lambda done, total, family: bar.update(task, completed=done, total=total, description=f"{family:<20}")
        )


def _spinner(text: str) -> AbstractContextManager[Any]:
    console = notes()
    return console.status(text) if console.is_terminal else nullcontext()


@dataclass(frozen=True, slots=True)
class FindingLine:
    """One finding: a sign and a word for its state, its name, what was found; below it the hint."""

    finding: Finding

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found, style = self.finding, _STYLES[self.finding.state]
        table = Table.grid(padding=(0, 1))
        table.add_column(width=_STATE_CELLS, no_wrap=True)
        table.add_column(width=_NAME_CELLS, overflow="fold")
        table.add_column(overflow="fold")
        state = Text(f"{glyphs_for(console, options).dot} {found.state}", style=style)
        table.add_row(
            state, Text(plain(found.name)), Text(plain(found.words), style=style if found.state == "failed" else "")
        )
        if found.hint:
            table.add_row("", "", Text(plain(found.hint), style="dim"))
        yield table


def _summary(findings: Sequence[Finding]) -> Text:
    """ "16 checks: all is well." or "16 checks: 1 failed, 2 warnings." """
    failed, warnings = (sum(found.state == state for found in findings) for state in ("failed", "warning"))
    parts = [f"{failed} failed"] if failed else []
    parts += [plural(warnings, "warning")] if warnings else []
    style = _STYLES["failed" if failed else "warning" if warnings else "ok"]
    return Text(f"{plural(len(findings), 'check')}: {', '.join(parts) or 'all is well'}.", style=style)


def _report(findings: Sequence[Finding]) -> dict[str, Any]:
    from vramancer_cli.doctor.program import is_frozen

    return {
        "ok": not any(finding.state == "failed" for finding in findings),
        "build": asdict(this_build()),
        "frozen": is_frozen(),
        "findings": [asdict(finding) for finding in findings],
    }
