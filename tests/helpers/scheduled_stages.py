"""A real scheduler over real stages on one device, without links: what a head and its workers do, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.helpers.stepping import no_progress
from transport.messages import Plan
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.readout import NO_READING, PromptReading, TokenScore
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.scheduler import Scheduler

GREEDY = Sampling(temperature=0.0)


class ScheduledStages:
    """`texts` are the tokens of every sequence so far, `scores` those of prompts that were read, `margin` the least
    distance of the two best logits of any token that was drawn."""

    def __init__(self, engine: TorchEngine, folder: Path, plan: Plan, *, prefix_cache: bool = True) -> None:
        self.scheduler = Scheduler(
            epoch=plan.epoch,
            block_count=plan.block_count,
            block_tokens=plan.block_tokens,
            max_step_tokens=plan.max_step_tokens,
            state_slots=plan.state_slots,
            prefix_cache=prefix_cache,
        )
        self.stages = [engine.load_stage(folder, plan, index, no_progress) for index in range(len(plan.stages))]
        self.ends = engine.load_ends(folder, plan, no_progress)
        self.texts: dict[int, list[int]] = {}
        self.scores: dict[int, list[TokenScore]] = {}
        self.margin = float("inf")
        self.copies = self.preemptions = 0
        self._finished: set[int] = set()
        self.computed_tokens = 0
        self._engine = engine

    def add(self, sequence: int, prompt: Sequence[int], max_tokens: int, reading: PromptReading = NO_READING) -> None:
        self.scheduler.add(sequence, tuple(prompt), GREEDY, max_tokens, frozenset(), reading)
        self.texts[sequence], self.scores[sequence] = [], []

    def step(self) -> bool:
        """False when there was nothing to do."""
        scheduled = self.scheduler.schedule(0.0)
        if scheduled is None:
            return False
        self.preemptions += len(set(scheduled.step.ended) - self._finished)
        hidden = self.ends.embed(scheduled.token_ids)
        for stage in self.stages:
            hidden = stage.execute(scheduled.step, self._engine.from_buffer(self._engine.to_buffer("h", hidden)))
        self._note_margin(hidden)
        outputs = self.ends.read(hidden, scheduled.readouts)
        drawn = [output.token for output in outputs if output.token is not None]
        for readout, output in zip(scheduled.readouts, outputs, strict=True):
            self.scores[readout.sequence].extend(output.prompt_scores)
        for item in self.scheduler.commit(scheduled.step, drawn, 0.0):
            self.texts[item.sequence].extend(item.token_ids)
            if item.finish_reason is not None:
                self._finished.add(item.sequence)
        self.scheduler.check_integrity()
        self.copies += len(scheduled.step.copies)
        self.computed_tokens += scheduled.step.token_count
        return True

    def run(self) -> None:
        """Until nothing is left to do: then the stages hold no table."""
        while self.step():
            pass
        assert self.scheduler.idle

    def close(self) -> None:
        for stage in self.stages:
            stage.close()
        self.ends.close()

    def _note_margin(self, hidden: torch.Tensor) -> None:
        if len(hidden):
            best = self.ends.logits(hidden).topk(2).values
            self.margin = min(self.margin, float((best[:, 0] - best[:, 1]).min()))
