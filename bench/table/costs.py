"""What a step should take: a small model, fed with constants that were measured, to hold the measured curves against.

A step passes every stage in turn. Reading the layers' weights and what Python does per layer cost the same whatever the
rows (`step_s`, of all layers together, wherever they are); each row costs its arithmetic (`row_s`) and the keys and values
that it looks back at (`look_s` each). With several stages there is a hop in front of each but the first, and one back to
the head; a hop costs its hand-over (`hop_s`), the way's delay, and the bytes of its rows at the way's bandwidth. The last
stage's rows go back to the head, who samples. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Way:
    """Between two hosts. `delay_s`: one way."""

    delay_s: float = 0.0
    bytes_per_s: float = inf


LOOPBACK = Way()


@dataclass(frozen=True, slots=True)
class Costs:
    """`row_bytes`: of one row's activation. `prompt_row_s`: of a row among many of one prompt."""

    step_s: float
    row_s: float
    prompt_row_s: float
    look_s: float
    hop_s: float
    row_bytes: int

    def hops(self, stages: int) -> int:
        return stages if stages > 1 else 0

    def decode_s(self, rows: int, context: int, stages: int = 1, way: Way = LOOPBACK) -> float:
        """One step with a new token of each of `rows` sequences behind `context` tokens, from head to head."""
        return self.step_s + rows * (self.row_s + context * self.look_s) + self._hops_s(rows, stages, way)

    def decode_rate(self, streams: int, context: int, stages: int = 1, way: Way = LOOPBACK) -> float:
        """Tokens a second of all streams. Several stages work at once on as many groups of streams.

        A group's step takes its way through all stages; as many of them as there are groups follow each other as close
        as the stage that takes longest lets them: one stage's part of the work.
        """
        groups = min(stages, streams)
        rows = streams / groups
        work_s = self.step_s + rows * (self.row_s + context * self.look_s)
        lap_s = work_s + self._hops_s(rows, stages, way)
        return streams / max(lap_s, groups * work_s / stages)

    def prefill_rate(self, tokens: int, chunk: int, stages: int = 1, way: Way = LOOPBACK) -> float:
        """Tokens of a prompt a second until the first token of its answer, chunk behind chunk through the stages."""
        chunks = -(-tokens // chunk)
        rows = tokens / chunks
        work_s = chunks * self.step_s + tokens * (self.prompt_row_s + tokens / 2 * self.look_s)
        hop_s = self.hop_s + way.delay_s + rows * self.row_bytes / way.bytes_per_s
        slowest_s = max(work_s / chunks / stages, hop_s if stages > 1 else 0.0)
        first_s = work_s / chunks + self.hops(stages) * hop_s
        return tokens / (first_s + (chunks - 1) * slowest_s)

    def _hops_s(self, rows: float, stages: int, way: Way) -> float:
        return self.hops(stages) * (self.hop_s + way.delay_s + rows * self.row_bytes / way.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is measured for the constants, in tokens a second: one stage but for the last; contexts in tokens.

    `prefill`: of `prefill_tokens`, one chunk. `far`: decode behind `far_context`.
    """

    context: int
    one: float
    streams: int
    crowd: float
    far_context: int
    far: float
    prefill_tokens: int
    prefill: float
    two_stages: float

    def costs(self, row_bytes: int) -> Costs:
        """The constants with which the model says what was measured; none below zero."""
        one_s, crowd_s = 1 / self.one, self.streams / self.crowd
        look_s = max(0.0, (1 / self.far - one_s) / (self.far_context - self.context))
        row_s = max(0.0, (crowd_s - one_s) / (self.streams - 1) - self.context * look_s)
        step_s = max(0.0, one_s - row_s - self.context * look_s)
        prompt_s = self.prefill_tokens / self.prefill - step_s - self.prefill_tokens**2 / 2 * look_s
        hop_s = max(0.0, (1 / self.two_stages - one_s) / 2)
        return Costs(step_s, row_s, max(0.0, prompt_s / self.prefill_tokens), look_s, hop_s, row_bytes)


def knees(points: Sequence[tuple[float, float]], least: float = 1.5) -> list[int]:
    """Where a curve of (x, y) turns: indices of points whose slopes before and behind differ `least`-fold, in
    logarithms of y over steps of the list."""
    found: list[int] = []
    for index in range(1, len(points) - 1):
        before, behind = (points[index + side][1] / points[index + side - 1][1] for side in (0, 1))
        if max(before, behind) / min(before, behind) >= least:
            found.append(index)
    return found
