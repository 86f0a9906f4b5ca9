"""Spans on their way from a worker to the head: told in parts there, put together here.

Never asyncio; what the spans say is `telemetry/activity`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from transport.clocks import Offset
from transport.errors import RemoteProtocolError
from transport.messages import MAX_SPANS, AskSpans, Span, Spans
from vramancer_cli.telemetry.recorder import RING_SPANS, Recorder


@dataclass(frozen=True, slots=True)
class ToldSpans:
    """A node's spans, by its own clock, and how far that is from the head's."""

    spans: tuple[Span, ...]
    clock: Offset | None


def told(recorder: Recorder, ask: AskSpans) -> Iterator[Spans]:
    """The answer, in as many messages as it takes."""
    spans = recorder.lately(ask.seconds)
    for start in range(0, max(1, len(spans)), MAX_SPANS):
        yield Spans(ask.number, spans[start : start + MAX_SPANS], last=start + MAX_SPANS >= len(spans))


class SpanInbox:
    """The answer of one worker to the last question."""

    def __init__(self) -> None:
        self._number = 0
        self._spans: list[Span] = []
        self.is_whole = False

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)

    def ask(self, seconds: float) -> AskSpans:
        """The question; what still comes of an older one is dropped."""
        self._number += 1
        self._spans.clear()
        self.is_whole = False
        return AskSpans(self._number, seconds)

    def take(self, message: Spans) -> None:
        """Raises RemoteProtocolError for more than a node can remember, and for times that are none."""
        if message.number != self._number or self.is_whole:
            return
        if len(self._spans) + len(message.spans) > RING_SPANS:
            raise RemoteProtocolError(f"A worker told of more than {RING_SPANS} spans.")
        if not all(isfinite(span.began_s) and span.began_s <= span.ended_s < float("inf") for span in message.spans):
            raise RemoteProtocolError("A worker told of a span that ends before it begins.")
        self._spans.extend(message.spans)
        self.is_whole = message.last
