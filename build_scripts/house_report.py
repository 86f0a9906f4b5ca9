"""The sizes of the house: files and lines per room, how long functions are, and which are longest.

    python -m build_scripts.house_report [--json] [--root FOLDER]

Reads source with `ast`; imports nothing of the program.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

ROOTS = ("transport", "vramancer_cli", "commands", "build_scripts", "bench", "fuzz", "tests")
LONGEST = 10


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """`lines` from `def` to the last statement, decorators and docstring not counted."""

    name: str
    path: str
    line: int
    lines: int


@dataclass(frozen=True, slots=True)
class FileSize:
    path: str
    lines: int
    functions: tuple[FunctionSize, ...]


@dataclass(frozen=True, slots=True)
class RoomSize:
    room: str
    files: int
    lines: int
    function_count: int
    function_median: float
    function_p90: int


@dataclass(frozen=True, slots=True)
class Report:
    """`rooms` ends with two sums: the program, and its tests. The longest are the program's, without tests."""

    rooms: tuple[RoomSize, ...]
    longest_functions: tuple[FunctionSize, ...]
    longest_files: tuple[FileSize, ...]


def measure_file(source: str, path: str) -> FileSize:
    """Raises SyntaxError, naming the path."""
    tree = ast.parse(source, filename=path)
    return FileSize(path, len(source.splitlines()), tuple(_functions(tree, path, prefix="")))


def measure_house(root: Path) -> Report:
    """Every .py file under the house's roots, root by root and room by room."""
    paths = [file.relative_to(root).as_posix() for name in ROOTS for file in (root / name).rglob("*.py")]
    paths.sort(key=lambda path: (ROOTS.index(path.split("/")[0]), room_of(path), path))
    return report_on([measure_file((root / path).read_text(encoding="utf-8"), path) for path in paths])


def report_on(files: Sequence[FileSize]) -> Report:
    rooms: dict[str, list[FileSize]] = {}
    for file in files:
        rooms.setdefault(room_of(file.path), []).append(file)
    program = [file for file in files if not file.path.startswith("tests/")]
    tests = [file for file in files if file.path.startswith("tests/")]
    functions = [function for file in program for function in file.functions]
    return Report(
        rooms=(
            *(_size(room, inside) for room, inside in rooms.items()),
            _size("program", program),
            _size("tests", tests),
        ),
        longest_functions=tuple(sorted(functions, key=lambda f: (-f.lines, f.path, f.line))[:LONGEST]),
        longest_files=tuple(sorted(program, key=lambda f: (-f.lines, f.path))[:LONGEST]),
    )


def room_of(path: str) -> str:
    """The folder for the house and the tests, the root for everything else."""
    parts = path.split("/")[:-1]
    return "/".join(parts[:2]) if parts[0] in ("vramancer_cli", "tests") else parts[0]


def percentile(values: Iterable[int], percent: int) -> int:
    """The smallest value that `percent` % of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0


def _size(room: str, files: Sequence[FileSize]) -> RoomSize:
    lengths = [function.lines for file in files for function in file.functions]
    return RoomSize(
        room=room,
        files=len(files),
        lines=sum(file.lines for file in files),
        function_count=len(lengths),
        function_median=median(lengths) if lengths else 0,
        function_p90=percentile(lengths, 90),
    )


def _functions(node: ast.AST, path: str, prefix: str) -> Iterable[FunctionSize]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}" if prefix else child.name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield FunctionSize(name, path, child.lineno, _lines_of(child))
        yield from _functions(child, path, name)


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def print_report(report: Report, console: Console) -> None:
    rooms = _table("Rooms", "room", "files", "lines", "functions", "median", "p90")
    for r in report.rooms[:-2]:
        rooms.add_row(*_cells(r))
    rooms.add_section()
    for r in report.rooms[-2:]:
        rooms.add_row(*_cells(r), style="bold")
    functions = _table("Longest functions", "function", "lines")
    for f in report.longest_functions:
        functions.add_row(f"{f.name}  [dim]{f.path}:{f.line}[/]", str(f.lines))
    files = _table("Longest files", "file", "lines")
    for file in report.longest_files:
        files.add_row(file.path, str(file.lines))
    for table in (rooms, functions, files):
        console.print(table)


def _cells(room: RoomSize) -> tuple[str, ...]:
    return (
        room.room,
        f"{room.files:,}",
        f"{room.lines:,}",
        f"{room.function_count:,}",
        f"{room.function_median:g}",
        f"{room.function_p90}",
    )


def _table(title: str, first: str, *figures: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_scripts.house_report", description="The sizes of the house.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the repository's folder")
    options = parser.parse_args(arguments)
    report = measure_house(options.root)
    if options.json:
        json.dump(asdict(report), sys.stdout, indent=2)
        print()
    else:
        print_report(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
