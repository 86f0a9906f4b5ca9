"""The table of a run: kept as JSON that another run can add cells to, shown as Markdown. Pure but for reading and
writing these files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.reports import Measured, Row, markdown_table, table
from bench.table.cells import BITS, CELLS, FORMATS, Bits, Cell

COMPARED: Final = ("ours", "theirs")
NOTE: Final = """\
A Llama of 1.1 billion random weights. Ours is measured through its HTTP API, streaming, with TLS between nodes and
drafting off; llama.cpp by its own tools (llama-bench, llama-batched-bench), which neither serve HTTP nor make text nor
encrypt: that flatters it. A host of one core is a process kept on that core, with one thread; all is one machine, over
loopback. Over RPC llama.cpp runs in the faster of two ways: two RPC servers, or the program itself with half of the
layers and one server. Prefill: tokens of a fresh prompt by the time until the first token of the answer. Decode: tokens
a second behind the first; of several streams, those of all in the middle half of the time. Measured in turn; the ratio
is the median of the pairs' ratios, above 1 is ours faster. Bytes are those of all weights, embedding and output head
included.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One cell measured: tokens a second, pair by pair; what both sides held, in bytes; how the peer ran."""

    letter: str
    bits: Bits
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ours_bytes: int
    theirs_bytes: int
    arrangement: str

    @property
    def cell(self) -> Cell:
        return next(cell for cell in CELLS if cell.letter == self.letter)

    @property
    def ratio(self) -> float:
        return median(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    def row(self) -> Row:
        goal, ratio = self.cell.goals[self.bits], self.ratio
        ours, theirs = Measured("tokens/s", self.ours), Measured("tokens/s", self.theirs)
        return Row(f"{self.letter}{self.bits} {self.cell.words}", ours, theirs, f"≥ {goal:g} x", ratio >= goal, ratio)

    def held(self) -> str:
        """What the weights are held in, and by whom."""
        formats = FORMATS[self.bits]
        theirs = formats.theirs if self.cell.peer == "llama.cpp" else formats.ours
        return f"{formats.ours} {_gigabytes(self.ours_bytes)} / {theirs} {_gigabytes(self.theirs_bytes)}"


@dataclass(frozen=True, slots=True)
class Other:
    """A peer that is told beside the table: what was measured, in tokens a second."""

    name: str
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`around`: what the figures depend on."""

    around: Mapping[str, str]
    records: tuple[Record, ...] = ()
    others: tuple[Other, ...] = ()

    def markdown(self) -> str:
        words = ", ".join(f"{name} {value}" for name, value in self.around.items())
        reached, all_of_them = sum(record.row().reached for record in self.records), len(CELLS) * len(BITS)
        told = f"{reached} of {all_of_them} cells reached, {len(self.records)} measured."
        return f"# Beside llama.cpp\n\n{words}.\n\n{NOTE}\n{told}\n\n{self._table()}\n{self._bytes()}\n{self._others()}"

    def _table(self) -> str:
        return table([record.row() for record in self.records], COMPARED)

    def _bytes(self) -> str:
        lines = [(f"{record.letter}{record.bits}", record.held(), record.arrangement) for record in self.records]
        return markdown_table([("", "weights held, ours / theirs", "the peer"), *lines])

    def _others(self) -> str:
        if not self.others:
            return ""
        rows = [(other.name, Measured("tokens/s", other.rates).words()) for other in self.others]
        return "transformers, bfloat16, one process, 2 threads, in the same run:\n\n" + markdown_table(
            [("", ""), *rows]
        )

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(record) | record.row().to_json() for record in self.records]
        return {**self.around, "rows": rows, "others": [asdict(other) for other in self.others]}


def merged(old: Report, around: Mapping[str, str], records: Iterable[Record], others: Iterable[Other]) -> Report:
    """With the new ones in the place of those that they replace, in the order of the cells."""
    kept = {(record.bits, record.letter): record for record in old.records}
    kept |= {(record.bits, record.letter): record for record in records}
    told = {other.name: other for other in (*old.others, *others)}
    ordered = sorted(kept.values(), key=lambda record: (-record.bits, record.letter))
    return Report(around, tuple(ordered), tuple(told.values()))


def read(folder: Path) -> Report:
    """What an earlier run left; nothing where none did."""
    path = folder / "table.json"
    if not path.is_file():
        return Report({})
    data = json.loads(path.read_text("utf-8"))
    around = {name: value for name, value in data.items() if isinstance(value, str)}
    records = tuple(_record(row) for row in data["rows"])
    others = tuple(Other(other["name"], tuple(other["rates"])) for other in data["others"])
    return Report(around, records, others)


def _record(row: Mapping[str, Any]) -> Record:
    return Record(
        row["letter"], row["bits"], tuple(row["ours"]), tuple(row["theirs"]),
        row["ours_bytes"], row["theirs_bytes"], row["arrangement"],
    )  # fmt: skip


def write(report: Report, folder: Path) -> str:
    """Writes table.json and table.md; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report.markdown()
    (folder / "table.json").write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "table.md").write_text(text, "utf-8")
    return text


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
