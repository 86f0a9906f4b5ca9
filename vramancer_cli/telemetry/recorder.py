"""What the threads of a node did lately, step by step: a ring of spans, cheap enough to be always on.

A span costs two looks at the clock and one append. Any thread may write, without a lock: the ring is a deque. Never
what the spans say of the cluster: that is `activity`'s business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from transport.contracts import OnSent, Received
from transport.messages import Span, SpanKind, Step

RING_SPANS: Final = 1 << 15
"""Some seconds of the fastest steps; at most 8 MB."""

Clock = Callable[[], float]
"""Monotonic seconds, the same for all threads of a node."""


class Recorder:
    """The last RING_SPANS spans of a node."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._spans: deque[Span] = deque(maxlen=RING_SPANS)

    def add(self, span: Span) -> None:
        self._spans.append(span)

    def of_step(self, step: Step) -> StepTrace:
        return StepTrace(self, step)

    def received(self, received: Received, stage: int = 0) -> None:
        """A frame for `stage` is here; on its link's thread."""
        if received.began_s:
            self.add(Span("receive", received.number, received.began_s, self.clock(), stage=stage))

    def sending(self, stage: int) -> OnSent:
        """For a data sender to tell of the frames that leave `stage`."""
        return lambda number, began_s, ended_s: self.add(Span("send", number, began_s, ended_s, stage=stage))

    def lately(self, seconds: float) -> tuple[Span, ...]:
        """What ended in the last `seconds`, in order of its beginning."""
        since_s = self.clock() - seconds
        found = [span for span in self._spans.copy() if span.ended_s >= since_s]
        return tuple(sorted(found, key=lambda span: span.began_s))


class StepTrace:
    """The spans of one step. What the step consists of is counted once, when first asked for."""

    __slots__ = ("_facts", "_recorder", "_step")

    def __init__(self, recorder: Recorder, step: Step) -> None:
        self._recorder = recorder
        self._step = step
        self._facts: tuple[int, int, int] | None = None

    @contextmanager
    def span(self, kind: SpanKind, device: int = 0, stage: int = 0) -> Iterator[None]:
        """Lasts as long as the block, also when that fails."""
        began_s = self._recorder.clock()
        try:
            yield
        finally:
            self.note(kind, began_s, device, stage)

    def note(self, kind: SpanKind, began_s: float, device: int = 0, stage: int = 0) -> None:
        """It ends now."""
        ended_s = self._recorder.clock()
        facts = self._counted() if kind in ("compute", "schedule") else ()
        self._recorder.add(Span(kind, self._step.number, began_s, ended_s, device, stage, *facts))

    def _counted(self) -> tuple[int, int, int]:
        """Rows, tokens, and tokens of prompts: of rows whose every token is not read, as those of decodes are."""
        if self._facts is None:
            rows = self._step.rows
            prompts = sum(row.count for row in rows if row.outputs < row.count)
            self._facts = len(rows), self._step.token_count, prompts
        return self._facts
