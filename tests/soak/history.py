"""What became of every request, and what must be true of it. Values only: no process, socket or clock.

Grade of sameness: identical (float32, CPUs): an answer that is whole is the undisturbed one, and what came of any other
is how the undisturbed one begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tests.helpers.streams import Question

Ending = Literal["done", "refused", "failed", "cancelled", "cut"]
"""Whole; refused with a status before a token; ended by an error event; left by its client; closed without a word."""

HONEST = frozenset({"node_lost", "not_ready", "queue_full"})
"""The codes that a refusal or an error event may have while machines come and go."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one request was told. `finishes`, `dones`: how often it was ended; `after`: events behind its end."""

    question: Question
    asked_at_s: float
    took_s: float
    ending: Ending
    text: str = ""
    code: str = ""
    finishes: int = 0
    dones: int = 0
    after: int = 0
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault, when it was done, and how long until the cluster was ready again."""

    name: str
    at_s: float
    ready_after_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one node's process. `own_bytes`: what would be free were it gone (USS)."""

    threads: int
    descriptors: int
    own_bytes: int


@dataclass(slots=True)
class History:
    """Everything that a soak is judged by."""

    seed: int
    expected: Mapping[Question, str]
    told: list[Told] = field(default_factory=list[Told])
    happened: list[Happened] = field(default_factory=list[Happened])
    before: dict[str, Figures] = field(default_factory=dict[str, Figures])
    after: dict[str, Figures] = field(default_factory=dict[str, Figures])
    complaints: list[str] = field(default_factory=list[str])


def lies(history: History) -> list[str]:
    """Every request that was not told the truth, in words; empty for a good soak."""
    return [f"{_who(told)}: {why}" for told in history.told for why in _wrongs(told, history.expected[told.question])]


def _who(told: Told) -> str:
    return f"request at {told.asked_at_s:.1f} s ({told.ending} {told.code}, {told.question})"


def _wrongs(told: Told, expected: str) -> list[str]:
    wrongs: list[str] = []
    if told.ending == "done" and told.text != expected:
        wrongs.append(f"the text is another one: {told.text!r} instead of {expected!r}")
    if not expected.startswith(told.text):
        wrongs.append(f"what was sent is not how the answer begins: {told.text!r}")
    if told.ending == "done" and (told.finishes, told.dones) != (1, 1 if told.question.stream else 0):
        wrongs.append(f"it was ended {told.finishes} times and said [DONE] {told.dones} times")
    if told.ending in ("failed", "refused") and (told.dones or told.code not in HONEST):
        wrongs.append(f"it failed with {told.code!r} and said [DONE] {told.dones} times")
    if told.ending == "cut":
        wrongs.append("the connection ended without a word")
    if told.after:
        wrongs.append(f"{told.after} events came after its end")
    return wrongs


SLACK_BYTES = 24 << 20
"""Beside 5 %: what the C library keeps of threads that ended."""
SLACK = 4
"""Threads and descriptors that may be there in one moment and not in another: a bulk link, a handshake."""


def leaks(history: History) -> list[str]:
    """Every process that holds more after the soak than before, in words."""
    found: list[str] = []
    for name, before in history.before.items():
        after = history.after.get(name)
        if after is None:
            continue
        if after.threads > before.threads + SLACK:
            found.append(f"{name}: {before.threads} threads became {after.threads}")
        if after.descriptors > before.descriptors + SLACK:
            found.append(f"{name}: {before.descriptors} descriptors became {after.descriptors}")
        if after.own_bytes > 1.05 * before.own_bytes + SLACK_BYTES:
            found.append(f"{name}: {before.own_bytes >> 20} MiB became {after.own_bytes >> 20} MiB")
    return found


def summary(history: History) -> dict[str, Any]:
    """As JSON has it."""
    endings = Counter(told.ending for told in history.told)
    faults = Counter(happened.name for happened in history.happened)
    ready = {
        name: round(max(h.ready_after_s for h in history.happened if h.name == name), 1) for name in sorted(faults)
    }
    return {
        "seed": history.seed,
        "requests": len(history.told),
        "endings": dict(sorted(endings.items())),
        "codes": dict(sorted(Counter(told.code for told in history.told if told.code).items())),
        "longest_pause_s": round(max((told.pause_s for told in history.told), default=0.0), 2),
        "faults": dict(sorted(faults.items())),
        "slowest_ready_s": ready,
        "before": {name: asdict(figures) for name, figures in history.before.items()},
        "after": {name: asdict(figures) for name, figures in history.after.items()},
        "lies": lies(history),
        "leaks": leaks(history),
        "complaints": history.complaints,
    }


def markdown(history: History, minutes: float, command: str) -> str:
    """The report, for people."""
    said = summary(history)
    verdict = (
        "No lie, no leak." if not any(said[kind] for kind in ("lies", "leaks", "complaints")) else "**It failed.**"
    )
    lines = [
        "# A cluster hurt every few seconds, for a long time",
        "",
        f"`{command}`: a head and three workers, of which two hold the built-in model; {minutes:g} minutes. {verdict}",
        "",
        f"{said['requests']} requests: "
        + ", ".join(f"{count} {name}" for name, count in said["endings"].items())
        + ".",
        f"The longest silence within an answer was {said['longest_pause_s']} s.",
        "",
        "| fault | how often | ready again after at most |",
        "| --- | --- | --- |",
        *(f"| {name} | {count} | {said['slowest_ready_s'][name]} s |" for name, count in said["faults"].items()),
        "",
        "| process | threads | descriptors | own memory |",
        "| --- | --- | --- | --- |",
        *(_figures_row(name, history.before[name], history.after.get(name)) for name in history.before),
    ]
    for kind in ("lies", "leaks", "complaints"):
        lines += ["", f"## {kind.capitalize()}", "", *(f"- {one}" for one in said[kind])] if said[kind] else []
    return "\n".join(lines) + "\n"


def _figures_row(name: str, before: Figures, after: Figures | None) -> str:
    if after is None:
        return f"| {name} | {before.threads} | {before.descriptors} | {before.own_bytes >> 20} MiB (replaced) |"
    threads, files = f"{before.threads} → {after.threads}", f"{before.descriptors} → {after.descriptors}"
    return f"| {name} | {threads} | {files} | {before.own_bytes >> 20} → {after.own_bytes >> 20} MiB |"


__all__ = ["Ending", "Figures", "Happened", "History", "Told", "leaks", "lies", "markdown", "summary"]
