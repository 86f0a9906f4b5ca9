"""The cells of the table: what is measured, how it is called, and what is to be reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from transport.types import WeightFormat

Bits = Literal[8, 4]
Setting = Literal["one process", "two hosts"]
Peer = Literal["llama.cpp", "ourselves in one 1-core process"]


class Work(NamedTuple):
    """Prompts of so many fresh tokens, at once; so many tokens of answer to each; 0: only the prompt is timed."""

    prompt_tokens: int
    tokens: int
    streams: int = 1


PREFILL: Final = Work(128, 0)
DECODE: Final = Work(16, 32)
CROWD: Final = Work(16, 24, 16)


@dataclass(frozen=True, slots=True)
class Cell:
    letter: str
    words: str
    setting: Setting
    work: Work
    goals: Mapping[Bits, float]
    repetitions: int
    peer: Peer = "llama.cpp"


CELLS: Final = (
    Cell("A", "prefill 128, one process, 2 threads", "one process", PREFILL, {8: 2.5, 4: 1.0}, 5),
    Cell("B", "decode, 1 stream, one process, 2 threads", "one process", DECODE, {8: 0.95, 4: 0.95}, 5),
    Cell("C", "decode, 16 streams, one process, 2 threads", "one process", CROWD, {8: 2.0, 4: 1.2}, 3),
    Cell("D", "prefill 128, two 1-core hosts", "two hosts", PREFILL, {8: 4.0, 4: 2.0}, 5),
    Cell("E", "decode, 1 stream, two 1-core hosts", "two hosts", DECODE, {8: 1.0, 4: 1.5}, 5),
    Cell("F", "decode, 16 streams, two 1-core hosts", "two hosts", CROWD, {8: 4.0, 4: 3.0}, 3),
    Cell(
        "G", "decode, 1 stream, two 1-core hosts beside one", "two hosts", DECODE, {8: 0.95, 4: 0.95}, 5,
        "ourselves in one 1-core process",
    ),
)  # fmt: skip


BITS: Final[tuple[Bits, ...]] = (8, 4)


class Formats(NamedTuple):
    """What both sides hold the layers' weights in, at equal bits per weight."""

    ours: WeightFormat
    theirs: str


FORMATS: Final[Mapping[Bits, Formats]] = {8: Formats("int8", "Q8_0"), 4: Formats("int4-64", "Q4_0")}
"""int8 takes 8 bits a weight and a scale per row, Q8_0 8.5; int4-64 and Q4_0 take 4.5."""
