"""Recorder: spans of steps, bounded, and only the late ones when asked."""

from __future__ import annotations

import pytest

from transport.contracts import Received
from transport.messages import Goodbye, Span, Step, StepRow
from vramancer_cli.telemetry import recorder as recorders
from vramancer_cli.telemetry.recorder import Recorder

PROMPT, DRAFTED, DECODE = (
    StepRow(1, 0, 7, (0,), ((1,),), 1),
    StepRow(2, 9, 3, (1,), ((),), 3),
    StepRow(3, 5, 1, (1,), ((),), 1),
)
STEP = Step(1, 4, (PROMPT, DRAFTED, DECODE))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_span_lasts_as_long_as_its_block_and_counts_what_is_computed(clock: Clock) -> None:
    recorder = Recorder(clock)
    trace = recorder.of_step(STEP)
    with trace.span("compute", 1, 2):
        clock.now += 2.0
    with trace.span("copy", 1, 2):
        clock.now += 1.0
    assert recorder.lately(10.0) == (
        Span("compute", 4, 100.0, 102.0, 1, 2, rows=3, tokens=11, prompt_tokens=7),
        Span("copy", 4, 102.0, 103.0, 1, 2),
    )


def test_what_fails_leaves_its_span_too(clock: Clock) -> None:
    recorder = Recorder(clock)
    with pytest.raises(ValueError, match="bad"), recorder.of_step(STEP).span("read"):
        clock.now += 1.0
        raise ValueError("bad")
    assert [span.ended_s for span in recorder.lately(1.0)] == [101.0]


def test_only_the_last_seconds_are_told_in_order_of_their_beginning(clock: Clock) -> None:
    recorder = Recorder(clock)
    for began_s, ended_s in ((90.0, 94.0), (95.0, 99.5), (94.0, 99.0)):
        recorder.add(Span("send", 1, began_s, ended_s))
    assert [span.began_s for span in recorder.lately(2.0)] == [94.0, 95.0]


def test_the_ring_forgets_the_oldest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "RING_SPANS", 3)
    recorder = Recorder(clock)
    for number in range(10):
        recorder.of_step(Step(1, number, ())).note("embed", 100.0)
    assert [span.number for span in recorder.lately(1.0)] == [7, 8, 9]


def test_frames_are_spans_of_their_links_threads(clock: Clock) -> None:
    recorder = Recorder(clock)
    recorder.sending(2)(5, 99.0, 99.5)
    recorder.received(Received(1, 6, Goodbye(""), began_s=99.75), 3)
    recorder.received(Received(1, 7, Goodbye("")), 3)  # of a link that measures nothing
    assert recorder.lately(5.0) == (
        Span("send", 5, 99.0, 99.5, stage=2),
        Span("receive", 6, 99.75, 100.0, stage=3),
    )
