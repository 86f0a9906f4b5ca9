"""A head without links: the real scheduler and the real engine, every stage in this process, over wire buffers.

For tests of what comes out of whole requests: mixed batches, chunks of prompts, preemption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.helpers.stepping import make_plan, no_progress, over_the_wire
from transport.types import CacheFormat
from vramancer_cli.engine import logits as processing
from vramancer_cli.engine.sampler import uniform
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.readout import NO_READING, PromptReading, RowOutput, TokenScore
from vramancer_cli.models.sampling import Draw, Sampling
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import Emitted, Scheduled


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    max_tokens: int = 16
    stops: frozenset[int] = frozenset()
    reading: PromptReading = NO_READING


@dataclass
class Answer:
    """`clearances`: for each token, how far its choice was from another one (see `clearance`)."""

    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    pooled: list[float] = field(default_factory=list)
    clearances: list[float] = field(default_factory=list)
    finish_reason: str | None = None


class EngineBench:
    """`copies`, `preemptions` and `computed_tokens` count what the steps so far were made of; `trips` rows that gave
    tokens, `drafted` and `right` the tokens guessed in them."""

    def __init__(
        self,
        folder: Path,
        stages: int,
        *,
        max_step_tokens: int = 48,
        block_tokens: int = 8,
        block_count: int = 220,
        prefix_cache: bool = True,
        draft: int | None = 0,
        clearances: bool = True,
        sequences: int = 16,
        kv_cache: CacheFormat = "plain",
    ) -> None:
        self._clearances = clearances
        self.engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
        self.plan = make_plan(
            self.engine,
            folder,
            stages,
            max_step_tokens=max_step_tokens,
            block_tokens=block_tokens,
            block_count=block_count,
            sequences=sequences,
            kv_cache=kv_cache,
        )
        self._stages = [self.engine.load_stage(folder, self.plan, index, no_progress) for index in range(stages)]
        self._ends = self.engine.load_ends(folder, self.plan, no_progress)
        self.scheduler = Scheduler(
            epoch=self.plan.epoch,
            block_count=self.plan.block_count,
            block_tokens=self.plan.block_tokens,
            max_step_tokens=self.plan.max_step_tokens,
            windows=self.plan.windows,
            state_slots=self.plan.state_slots,
            prefix_cache=prefix_cache,
            draft=draft,
        )
        self.copies = self.preemptions = self.computed_tokens = 0
        self.trips = self.drafted = self.right = 0
        self._next_sequence = 0

    def close(self) -> None:
        for stage in self._stages:
            stage.close()
        self._ends.close()

    def answer(self, asks: Sequence[Ask], *, joins_every: int = 0) -> list[Answer]:
        """All of them, the next one joining after so many steps (0: all at once). What is cached stays."""
        answers: dict[int, Answer] = {}
        joined = step = 0
        while True:
            while joined < len(asks) and step >= joined * joins_every:
                answers[self._join(asks[joined])] = Answer()
                joined += 1
            scheduled = self.scheduler.schedule(float(step))
            step += 1
            if scheduled is not None:
                self._run(scheduled, answers)
            elif joined == len(asks):
                assert self.scheduler.idle
                self.scheduler.check_integrity()
                return list(answers.values())

    def _join(self, ask: Ask) -> int:
        sequence = self._next_sequence
        self._next_sequence += 1
        self.scheduler.add(sequence, ask.prompt, ask.sampling, ask.max_tokens, ask.stops, reading=ask.reading)
        return sequence

    def _run(self, scheduled: Scheduled, answers: dict[int, Answer]) -> None:
        step = scheduled.step
        self.copies += len(step.copies)
        self.preemptions += sum(answers[sequence].finish_reason is None for sequence in step.ended)
        self.computed_tokens += step.token_count
        crossing = self._ends.embed(step, scheduled.token_ids)
        for index, stage in enumerate(self._stages):
            received = over_the_wire(step, index, self.engine.to_buffers(crossing))
            crossing = stage.execute(step, self.engine.from_buffers(received.tensors))
        outputs = self._ends.read(crossing, scheduled.readouts)
        tokens = [token for output in outputs for token in output.tokens]
        emitted = {item.sequence: item for item in self.scheduler.commit(step, tokens, 0.0)}
        end = 0
        for readout, output in zip(scheduled.readouts, outputs, strict=True):
            end += readout.outputs
            answer = answers[readout.sequence]
            came = emitted.get(readout.sequence)
            _take(answer, output, came)
            self._count(came)
            drawn = len(came.token_ids) + (came.finish_reason == "stop") if came and self._clearances else 0
            for row, draw in enumerate(readout.draws[:drawn], start=end - len(readout.draws)):
                answer.clearances.append(clearance(self._ends.logits(crossing.hidden[row : row + 1]), draw))

    def _count(self, came: Emitted | None) -> None:
        if came is not None:
            self.trips += 1
            self.drafted += came.drafted
            self.right += came.right


def _take(answer: Answer, output: RowOutput, emitted: Emitted | None) -> None:
    answer.prompt_scores += output.prompt_scores
    if output.pooled:
        answer.pooled = [a + b for a, b in zip(answer.pooled or [0.0] * len(output.pooled), output.pooled, strict=True)]
    if emitted is not None:
        answer.tokens += emitted.token_ids
        answer.scores += output.scores[: len(emitted.token_ids)]
        answer.finish_reason = emitted.finish_reason


def clearance(logits: torch.Tensor, draw: Draw) -> float:
    """Of a greedy choice: the two best logits' distance, as processed. Of a draw: its distance from the nearest border
    of a share. Rounding that is smaller than this cannot have decided."""
    logits = logits.clone()
    processing.process(logits, [draw])
    if draw.sampling.temperature == 0:
        best = logits[0].topk(2).values
        return float(best[0] - best[1])
    sums = processing.shares(logits, [draw.sampling])[0].double().cumsum(0)
    return float((sums / sums[-1] - uniform(draw)).abs().min())
