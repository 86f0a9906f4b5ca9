"""Drives stages by hand-made steps, without scheduler or links: what a head does, in sixty lines.

Block ids are given out in a shuffled order on request, so that tables are consecutive for some sequences only. What a
window has left behind is given out again at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from transport.codec import decode, encode
from transport.contracts import Received, TensorBuffer
from transport.framing import HEADER_BYTES, FrameHeader
from transport.messages import Activation, ModelRef, Plan, StagePlan, Step, StepRow, WindowGroup
from transport.types import ActivationFormat, CacheFormat, LayerRange, WeightFormat
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.ends import TorchEnds
from vramancer_cli.engine.stage import PagedStage
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.cache_window import first_held_block, most_held_blocks
from vramancer_cli.models.sampling import Draw, Sampling


def no_progress(loaded_bytes: int, total_bytes: int) -> None:
    """For loads that nobody watches."""


def make_plan(
    engine: TorchEngine,
    folder: Path,
    stages: int | Sequence[LayerRange],
    *,
    dtype: str = "float32",
    quantize: WeightFormat = "none",
    block_count: int = 96,
    block_tokens: int = 16,
    max_step_tokens: int = 64,
    sequences: int = 16,
    windowed: bool = True,
    kv_cache: CacheFormat = "plain",
) -> Plan:
    """A plan with every stage on this engine's device: layers cut evenly, or as given.

    `windowed`: with a cache group for each length of window, as large as `sequences` ask for; else all is in group 0.
    """
    ref = ModelRef("test", "folder", "", engine.digest(folder))
    facts = engine.model_facts(folder, ref)
    ranges = even_ranges(facts.layer_count, stages) if isinstance(stages, int) else stages
    device = engine.device_facts()
    state_slots = sequences if facts.has_state else 0
    windows = {
        part.window_tokens: sequences * most_held_blocks(part.window_tokens, max_step_tokens, block_tokens)
        for part in facts.windows
        if windowed
    }
    window_tokens = {window: count * block_tokens for window, count in windows.items()}
    return Plan(
        epoch=1,
        model=ref,
        dtype=dtype,
        context_tokens=facts.context_tokens,
        block_tokens=block_tokens,
        block_count=block_count,
        max_step_tokens=max_step_tokens,
        ends="n0",
        ends_bytes=facts.ends_bytes(dtype),
        stages=tuple(
            StagePlan(
                node=f"n{index}",
                device=device,
                layers=layers,
                weights_bytes=facts.weights_bytes(layers, dtype, quantize),
                kv_bytes=facts.kv_bytes(layers, dtype, block_count * block_tokens, window_tokens, kv_cache)
                + facts.state_bytes(layers, state_slots),
                workspace_bytes=max(facts.workspace_bytes(max_step_tokens), facts.quantising_bytes(dtype, quantize)),
            )
            for index, layers in enumerate(ranges)
        ),
        state_slots=state_slots,
        quantize=quantize,
        kv_cache=kv_cache,
        windows=tuple(WindowGroup(*pair) for pair in windows.items()),
    )


def even_ranges(layer_count: int, stages: int) -> list[LayerRange]:
    cuts = [layer_count * index // stages for index in range(stages + 1)]
    return [LayerRange(start, end) for start, end in pairwise(cuts)]


def over_the_wire(step: Step, stage: int, buffers: Sequence[TensorBuffer]) -> Received:
    """What a link makes of an activation, without the link."""
    head, pieces = encode(step.epoch, step.number, Activation(stage, step), buffers)
    payload = memoryview(bytearray(b"".join(pieces)))
    received = decode(FrameHeader.unpack(head[:HEADER_BYTES]), head[HEADER_BYTES:], payload)
    assert received is not None
    return received


@dataclass
class Request:
    """A prompt that joins at step `joins_at`; `generated` fills up to `max_tokens`.

    `held`: by cache group, its block ids by their number among the sequence's blocks.
    """

    prompt: list[int]
    max_tokens: int
    joins_at: int = 0
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    generated: list[int] = field(default_factory=list[int])
    tokens_done: int = 0
    held: dict[int, dict[int, int]] = field(default_factory=dict[int, dict[int, int]])
    slot: int | None = None
    margins: list[float] = field(default_factory=list[float])
    logits: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    @property
    def pending(self) -> list[int]:
        return (self.prompt + self.generated)[self.tokens_done :]

    @property
    def finished(self) -> bool:
        return len(self.generated) >= self.max_tokens


class Driver:
    """The head's part: makes steps, carries hidden states from stage to stage over wire buffers, samples."""

    def __init__(
        self,
        engine: TorchEngine,
        folder: Path,
        plan: Plan,
        *,
        shuffle: bool = True,
        activations: ActivationFormat = "plain",
    ) -> None:
        self.engine, self.plan, self.activations = engine, plan, activations
        self.stages: list[PagedStage] = [
            engine.load_stage(folder, plan, index, no_progress) for index in range(len(plan.stages))
        ]
        self.ends: TorchEnds = engine.load_ends(folder, plan, no_progress)
        counts = (plan.block_count, *(window.block_count for window in plan.windows))
        self.free = [list(range(count))[::-1] for count in counts]  # by cache group
        for free in self.free if shuffle else ():
            random.Random(5).shuffle(free)
        self.most_held = [0] * len(counts)
        self.slots = list(range(plan.state_slots))
        self.number = 0
        self.ended: list[int] = []

    def close(self) -> None:
        for stage in self.stages:
            stage.close()
        self.ends.close()

    def run(self, requests: Sequence[Request]) -> None:
        """Until all are finished: decode rows first, what is left of the step's budget for prompts, in chunks."""
        while not all(request.finished for request in requests):
            self.step(requests)

    def step(self, requests: Sequence[Request]) -> None:
        chosen: list[tuple[int, Request, list[int]]] = []
        budget = self.plan.max_step_tokens
        running = [(i, r) for i, r in enumerate(requests) if r.joins_at <= self.number and not r.finished]
        for index, request in sorted(running, key=lambda pair: len(pair[1].pending)):
            tokens = request.pending[:budget]
            budget -= len(tokens)
            if tokens:
                chosen.append((index, request, tokens))
        rows = tuple(self._row(index, request, len(tokens)) for index, request, tokens in chosen)
        step = Step(self.plan.epoch, self.number, rows, tuple(self.ended))
        self.number, self.ended = self.number + 1, []
        hidden = self.send(step, [token for _, _, tokens in chosen for token in tokens])
        self._take([pair[:2] for pair, row in zip(chosen, rows, strict=True) if row.outputs], hidden)
        for index, request in enumerate(requests):
            if request.finished and request.held:
                self.ended.append(index)
                for group, held in request.held.items():
                    self.free[group] += held.values()
                request.held = {}
                self.slots += [] if request.slot is None else [request.slot]

    def send(self, step: Step, token_ids: Sequence[int]) -> Boundary:
        boundary = self.ends.embed(step, token_ids)
        for index, stage in enumerate(self.stages):
            received = over_the_wire(step, index, self.engine.to_buffers(boundary, self.activations))
            boundary = stage.execute(step, self.engine.from_buffers(received.tensors))
        return boundary

    def _row(self, index: int, request: Request, count: int) -> StepRow:
        start = request.tokens_done
        given = [self._given(request, group, start, count) for group in range(len(self.free))]
        if self.plan.state_slots:
            request.slot = self.slots.pop() if start == 0 else request.slot
            given.append((0, (request.slot,)) if start == 0 and request.slot is not None else (1, ()))
        request.tokens_done += count
        first_block, blocks = zip(*given, strict=True)
        return StepRow(index, start, count, first_block, blocks, int(len(request.pending) == 0))

    def _given(self, request: Request, group: int, start: int, count: int) -> tuple[int, tuple[int, ...]]:
        """The number of the first block that the row brings in this group, and the ids."""
        size, free, held = self.plan.block_tokens, self.free[group], request.held.setdefault(group, {})
        first = max(held, default=-1) + 1
        for number in list(held) if group else ():
            if number < first_held_block(self.plan.windows[group - 1].window_tokens, start, size):
                free.append(held.pop(number))
        new = {number: free.pop() for number in range(first, -(-(start + count) // size))}
        held |= new
        self.most_held[group] = max(self.most_held[group], len(held))
        return first, tuple(new.values())

    def _take(self, sampled: Sequence[tuple[int, Request]], output: Boundary) -> None:
        if not sampled:
            return
        draws = [Draw(request.sampling, len(request.generated)) for _, request in sampled]
        logits = self.ends.logits(output.hidden)
        best = logits.topk(2).values
        tokens = self.ends.sample(output, draws)
        for (_, request), token, row, top in zip(sampled, tokens, logits, best, strict=True):
            request.generated.append(token)
            request.logits.append(row)
            request.margins.append(float(top[0] - top[1]))
