"""What a step should take: a small model, fed with constants that were measured, to hold measured curves against.

A step passes every stage in turn. Reading the layers' weights and what Python does per layer cost the same whatever
the rows (`step_s`, of all layers together, wherever they are); each row costs its arithmetic (`row_s`), each key and
value that it looks back at costs `look_s`. With several stages there is a hop in front of each but the first, and one
back to the head: its hand-over (`hop_s`), the way's delay, and its rows' bytes at the way's bandwidth. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf


@dataclass(frozen=True, slots=True)
class Way:
    """Between two hosts. `delay_s`: one way."""

    delay_s: float = 0.0
    bytes_per_s: float = inf


LOOPBACK = Way()


@dataclass(frozen=True, slots=True)
class Case:
    """Decodes of `streams` sequences behind `context` tokens each; or, with `prompt_tokens`, that prompt alone."""

    streams: int = 1
    context: int = 0
    stages: int = 1
    way: Way = LOOPBACK
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """`row_bytes`: of one row's activation. `prompt_row_s`: of a row among the many of a prompt, which runs in chunks
    of `chunk_tokens`."""

    step_s: float
    row_s: float
    prompt_row_s: float
    look_s: float
    hop_s: float
    row_bytes: int
    chunk_tokens: int = 256

    def rate(self, case: Case) -> float:
        """Tokens a second, of all streams together."""
        return self._prefill_rate(case) if case.prompt_tokens else self._decode_rate(case)

    def parts(self, case: Case) -> Mapping[str, float]:
        """What a decode step of all streams, or of one group where several stages share them, consists of; seconds."""
        rows, hops = case.streams / _groups(case), _hops(case)
        return {
            "what a step costs whatever its rows": self.step_s,
            "the rows' arithmetic": rows * self.row_s,
            "looking back at the context": rows * case.context * self.look_s,
            "handing over": hops * self.hop_s,
            "the way's delay": hops * case.way.delay_s,
            "bytes on their way": hops * rows * self.row_bytes / case.way.bytes_per_s,
        }

    def _decode_rate(self, case: Case) -> float:
        """As many groups of streams as stages circulate: a group's step takes its way through all stages, and they
        follow each other no closer than a stage's part of the work lets them."""
        step, looking = self.parts(case), ("what a step costs whatever its rows", "the rows' arithmetic")
        work_s = sum(step[name] for name in looking) + step["looking back at the context"]
        return case.streams / max(sum(step.values()), _groups(case) * work_s / case.stages)

    def _prefill_rate(self, case: Case) -> float:
        """Until the first token of the answer, chunk behind chunk through the stages."""
        tokens = case.prompt_tokens
        chunks = -(-tokens // self.chunk_tokens)
        work_s = self.step_s + tokens / chunks * (self.prompt_row_s + tokens / 2 * self.look_s)
        one_way_s = self.hop_s + case.way.delay_s + tokens / chunks * self.row_bytes / case.way.bytes_per_s
        onward = max(0, case.stages - 1)
        back_s = (self.hop_s + case.way.delay_s) if onward else 0.0
        closest_s = max(work_s / case.stages, one_way_s if onward else 0.0)
        return tokens / (work_s + onward * one_way_s + back_s + (chunks - 1) * closest_s)


def _groups(case: Case) -> int:
    return min(case.stages, case.streams)


def _hops(case: Case) -> int:
    return case.stages if case.stages > 1 else 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is measured for the constants, in tokens a second. One stage, but for `two_stages`; contexts in tokens.

    `one`: one stream behind `context`; `crowd`: `streams` of them; `far`: one behind `far_context`; `prefill`: of
    `prefill_tokens`, which are one chunk.
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


def knees(rates: Sequence[float], least: float = 1.4) -> list[int]:
    """Where a curve turns: points before and behind which it grows, or falls, by factors that differ `least`-fold."""
    steps = [after / before for before, after in pairwise(rates)]
    turns = [max(one, other) / min(one, other) for one, other in pairwise(steps)]
    return [index + 1 for index, turn in enumerate(turns) if turn >= least]
