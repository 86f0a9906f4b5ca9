"""What must hold when one end of a link receives a stream, whatever the stream; and a whole run of such streams."""

from __future__ import annotations

import math
import mmap
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil

from fuzz import drafts
from fuzz.drafts import Draft
from fuzz.findings import CRASHES, Finding, Tally, deadline, require, told
from fuzz.frame_cases import Case, make_case
from transport.codec import decode, encode
from transport.connection import ARRIVES, Connection, Role, State
from transport.contracts import Received
from transport.errors import IncompatibleError, RemoteProtocolError, TransportError, TrustError
from transport.framing import BULK_LIMITS, CONTROL_LIMITS, DATA_LIMITS, Frame, FrameHeader, FrameParser
from transport.messages import CARRIERS, MESSAGES, Activation, Roll, Welcome

NAMED: Final = (RemoteProtocolError, IncompatibleError, TrustError)
LAZY_BYTES: Final = 1 << 16
HEAP_EVERY: Final = 512
RSS_EVERY: Final = 20_000
REPLAYS: Final = 16
RSS_GROWTH_BYTES: Final = 48 << 20
HEAP_FACTOR: Final = 80
"""The most heap bytes that one byte of msgpack may become: three bytes hold an int in a tuple, which is 36 here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out: messages (None for a skipped one), then perhaps an error, of the parser or of a message."""

    received: tuple[Received | None, ...]
    error: TransportError | None
    by_parser: bool = False


class Meter:
    """Gives payload buffers, and knows the largest that was asked for. Big ones are memory only once written to."""

    def __init__(self) -> None:
        self.largest = 0

    def __call__(self, size_bytes: int) -> memoryview:
        self.largest = max(self.largest, size_bytes)
        return memoryview(bytearray(size_bytes) if size_bytes < LAZY_BYTES else mmap.mmap(-1, size_bytes))


def chunk_lengths(length: int, rng: random.Random) -> Iterator[int]:
    most = rng.choice((1, 3, 64, 65, 1000, 1 << 20)) if length < 600 else rng.choice((65, 1000, 1 << 20))
    while length > 0:
        size = min(length, rng.randint(1, most))
        yield size
        length -= size


class End:
    """One end of a link: takes frames from the parser and gives them to the connection, as a link does."""

    def __init__(self, case: Case, meter: Meter) -> None:
        self.connection = Connection(case.role, drafts.OWN, drafts.NODE, allocate=meter)
        self.stream = memoryview(case.stream)
        self.received: list[Received | None] = []
        self.in_parser = True

    def take(self, frame: Frame) -> None:
        self.in_parser = False
        received = self.connection.receive(frame)
        self.in_parser = True
        self.received.append(received)
        if received is not None:
            _check_whole(frame, received)

    def outcome(self, error: TransportError | None) -> Outcome:
        return Outcome(tuple(self.received), error, error is not None and self.in_parser)


def feed(end: End, start: int, stop: int) -> None:
    """As control links read: whatever came is fed, then frames are taken."""
    end.connection.parser.feed(end.stream[start:stop])
    while (frame := end.connection.parser.next_event()) is not None:
        end.take(frame)


def read_into(end: End, start: int, stop: int) -> None:
    """As data links read: straight into the buffer that is wanted."""
    while start < stop:
        wanted = end.connection.parser.wanted()
        require(len(wanted) > 0, "the parser wants no bytes")
        count = min(len(wanted), stop - start)
        wanted[:count] = end.stream[start : start + count]
        start += count
        if (frame := end.connection.parser.advance(count)) is not None:
            end.take(frame)


def drive(
    case: Case, read: Callable[[End, int, int], None], rng: random.Random, meter: Meter
) -> tuple[Outcome, Connection]:
    """The whole stream, or until the first error."""
    end, at = End(case, meter), 0
    try:
        for size in chunk_lengths(len(case.stream), rng):
            read(end, at, at + size)
            at += size
    except NAMED as error:
        return end.outcome(error), end.connection
    return end.outcome(None), end.connection


def check(case: Case, rng: random.Random) -> Outcome:
    """Raises BrokenPromiseError, HangError, or whatever came out that is no named error."""
    meter = Meter()
    first, second = rng.sample((feed, read_into), 2)
    outcome, connection = drive(case, first, rng, meter)
    limits = {Role.DATA_RECEIVER: DATA_LIMITS, Role.BULK_CALLER: BULK_LIMITS}.get(case.role, CONTROL_LIMITS)
    require(meter.largest <= limits.max_payload_bytes, f"{meter.largest} bytes were allocated for a payload")
    _check_order(case.role, outcome, connection)
    for received in outcome.received:
        if received is not None:
            _check_message(received)
    if outcome.by_parser:
        _check_latched(connection.parser, case)
    if rng.random() < 0.25:
        again, _ = drive(case, second, rng, Meter())
        require(_digest(again) == _digest(outcome), "the chunks decide what comes out")
    return outcome


def _check_order(role: Role, outcome: Outcome, connection: Connection) -> None:
    """A Hello first, never again, and after a Goodbye nothing."""
    names = ["skipped" if r is None else type(r.message).__name__ for r in outcome.received]
    require(not names or names[0] == "Hello", f"{names[0] if names else ''} came before the Hello")
    require("Hello" not in names[1:], "a second Hello was taken")
    require("Goodbye" not in names[:-1], "a message was taken after the Goodbye")
    allowed = {MESSAGES[t].__name__ for t in ARRIVES[role, State.OPEN]} | {"skipped"}
    require(set(names[1:]) <= allowed, f"{set(names[1:]) - allowed} on a {role.value} link")
    if names and names[-1] == "Goodbye":
        require(connection.state is State.CLOSED, "the link is open after a Goodbye")


def _check_whole(frame: Frame, received: Received) -> None:
    """Every byte of the payload is one tensor's; a step is that of its frame. By another road than the codec's."""
    taken = b"".join(bytes(tensor.data) for tensor in received.tensors.values())
    require(taken == bytes(frame.payload), "the tensors are not the payload")
    require(
        received.number == frame.header.number and received.epoch == frame.header.epoch, "the numbers of another frame"
    )
    if isinstance(received.message, Activation):
        step = received.message.step
        require((step.epoch, step.number) == (received.epoch, received.number), "the step of another frame")
        require(all(len(row.blocks) == len(row.first_block) for row in step.rows), "half a block table")


def _check_message(received: Received) -> None:
    """What was taken can be sent, means the same, and looks the same ever after."""
    tensors = list(received.tensors.values())
    head, payload = encode(received.epoch, received.number, received.message, tensors)
    body = b"".join(payload)
    draft = Draft.of(head + body)
    header = FrameHeader.unpack(head[:64])
    again = decode(header, draft.meta, memoryview(body))
    require(again is not None and again.message == received.message, "another message after encode and decode")
    assert again is not None
    twice, _ = encode(again.epoch, again.number, again.message, list(again.tensors.values()))
    require(twice == head, "other bytes after encode and decode")
    require(all(a.data == b.data for a, b in zip(tensors, again.tensors.values(), strict=True)), "other tensors")
    numbers = [
        m.heartbeat_s if isinstance(m, Welcome) else m.head_time_s
        for m in (again.message,)
        if isinstance(m, Welcome | Roll)
    ]
    require(all(map(math.isfinite, numbers)), "a number that is none was taken")
    require(again.message.type_id in CARRIERS or not body, "a payload came with a message that has none")


def _check_latched(parser: FrameParser, case: Case) -> None:
    """After its own error the parser gives nothing any more. (Errors of `receive` are kept by the link.)"""
    for attempt in (parser.wanted, lambda: (parser.feed(case.stream[:4096] or b"x"), parser.next_event())):
        try:
            attempt()
        except RemoteProtocolError:
            continue
        require(False, "the parser went on after an error")


def _digest(outcome: Outcome) -> tuple[object, ...]:
    parts = [
        None
        if r is None
        else (r.epoch, r.number, msgspec.msgpack.encode(r.message), [bytes(t.data) for t in r.tensors.values()])
        for r in outcome.received
    ]
    return (parts, type(outcome.error), str(outcome.error), outcome.by_parser)


# --- a whole run ---------------------------------------------------------------------------------------------


def check_heap(case: Case, rng: random.Random) -> Outcome:
    """`check`, with every byte of Python's heap counted."""
    tracemalloc.start()
    try:
        outcome = check(case, rng)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = HEAP_FACTOR * len(case.stream) + 3 * CONTROL_LIMITS.max_meta_bytes
    require(peak_bytes <= allowed, f"{len(case.stream)} bytes became {peak_bytes} bytes of heap")
    return outcome


def run(
    frames: int, seed: int, crashes: Path = CRASHES, first: int = 0, progress: Callable[[str], None] = print
) -> Tally:
    """Until so many frames have been looked at; those behind an error in their stream do not count."""
    tally, process, number, base_bytes = Tally("frames", seed), psutil.Process(), first, 0
    while tally.done < frames:
        case = make_case(seed, number)
        run_one(
            case,
            random.Random((seed << 41) + number),
            f"frames:{seed}:{number}",
            tally,
            crashes,
            number % HEAP_EVERY == 0,
        )
        number += 1
        if (number - first) % RSS_EVERY == 0:
            rss_bytes = process.memory_info().rss
            base_bytes = base_bytes or rss_bytes
            progress(f"  frames {tally.done:,} cases {number - first:,} rss {rss_bytes >> 20} MiB")
            if rss_bytes > base_bytes + RSS_GROWTH_BYTES:
                tally.add(Finding(f"memory grew from {base_bytes} to {rss_bytes} bytes", f"frames:{seed}", ""), crashes)
                base_bytes = rss_bytes
    tally.kinds["cases"] = number - first
    return tally


def run_one(case: Case, rng: random.Random, name: str, tally: Tally, crashes: Path, heap: bool) -> None:
    try:
        with deadline():
            outcome = (check_heap if heap else check)(case, rng)
    except Exception as error:
        part, seed, number = name.split(":")
        command = f"python -m fuzz {part} --seed {seed} --case {number}"
        tally.add(Finding(told(error), name, command, case.to_bytes()), crashes)
        tally.done += 1
        return
    tally.done += len(outcome.received) + (outcome.error is not None)
    tally.kinds["taken"] += sum(r is not None for r in outcome.received)
    tally.kinds["skipped"] += sum(r is None for r in outcome.received)
    tally.kinds[type(outcome.error).__name__ if outcome.error else "stream ended"] += 1


def replay(data: bytes) -> Outcome:
    """One case from a file, in many chunkings. Raises what it raises."""
    case = Case.from_bytes(data)
    for seed in range(REPLAYS):
        with deadline():
            check_heap(case, random.Random(seed))
    return check(case, random.Random(0))
