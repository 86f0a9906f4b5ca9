"""Spans on their way: in parts, bounded, and of the last question only."""

from __future__ import annotations

import pytest

from transport.errors import RemoteProtocolError
from transport.messages import MAX_SPANS, AskSpans, Span, Spans
from vramancer_cli.runtime import span_inbox
from vramancer_cli.runtime.span_inbox import SpanInbox, told
from vramancer_cli.telemetry.recorder import Recorder


def recorder(count: int) -> Recorder:
    made = Recorder(lambda: 50.0)
    for number in range(count):
        made.add(Span("embed", number, 49.0, 49.5))
    return made


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (MAX_SPANS, 1), (MAX_SPANS + 1, 2)])
def test_an_answer_comes_in_parts_and_is_whole_with_the_last(count: int, parts: int) -> None:
    inbox = SpanInbox()
    answer = list(told(recorder(count), inbox.ask(5.0)))
    assert len(answer) == parts and [part.last for part in answer] == [False] * (parts - 1) + [True]
    for part in answer:
        assert not inbox.is_whole
        inbox.take(part)
    assert inbox.is_whole and len(inbox.spans) == count


def test_what_answers_an_older_question_is_dropped() -> None:
    inbox = SpanInbox()
    late = list(told(recorder(3), inbox.ask(5.0)))
    assert inbox.ask(5.0) == AskSpans(2, 5.0)
    inbox.take(late[0])
    assert (inbox.is_whole, inbox.spans) == (False, ())


def test_nobody_tells_more_than_a_node_can_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_inbox, "RING_SPANS", 3)
    inbox = SpanInbox()
    inbox.ask(5.0)
    two = (Span("embed", 1, 1.0, 2.0),) * 2
    inbox.take(Spans(1, two, False))
    with pytest.raises(RemoteProtocolError, match="more than 3"):
        inbox.take(Spans(1, two, False))


@pytest.mark.parametrize("times", [(2.0, 1.0), (float("nan"), 1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_times_that_are_none_are_refused(times: tuple[float, float]) -> None:
    inbox = SpanInbox()
    inbox.ask(5.0)
    with pytest.raises(RemoteProtocolError, match="ends before"):
        inbox.take(Spans(1, (Span("embed", 1, *times),), True))
