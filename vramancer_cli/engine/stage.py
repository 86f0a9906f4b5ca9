"""A stage: a shard with its KV cache at a place in the pipeline, executing steps.

Must never import the pipeline, links or clocks: a local and a remote stage are the same thing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch

from transport.errors import RemoteProtocolError
from transport.messages import Plan, StagePlan, Step
from vramancer_cli.engine.batch import Batch, SpanPlace
from vramancer_cli.engine.block_tables import BlockTables, PlacedRow
from vramancer_cli.engine.boundary import Boundary, check, joined, nothing
from vramancer_cli.engine.checkpoint import Checkpoint, open_checkpoint
from vramancer_cli.engine.devices import empty_cache
from vramancer_cli.engine.kv_cache import KvPool, gather_bytes, pool_bytes
from vramancer_cli.engine.memory import MemoryBudget, Reservation
from vramancer_cli.engine.read_progress import Progress
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.state import StatePool
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.errors import ModelError, VramancerError

Timing = Callable[[int, int], AbstractContextManager[None]]
"""Around so many layers that execute so many tokens."""


class PagedStage:
    """Implements the runtime's `Stage`. Every method on the device's thread."""

    def __init__(self, plan: Plan, shard: Shard, pool: KvPool, device: torch.device, held: Reservation, timing: Timing):
        self.weights_bytes = shard.weights_bytes
        self.kv_bytes = cache_bytes(shard, plan)
        self._plan = plan
        self._is_last = shard.layers.end == plan.stages[-1].layers.end
        self._loaded: tuple[Shard, KvPool, StatePool] | None = (shard, pool, StatePool(shard, plan.state_slots))
        self._tables = BlockTables(
            plan.block_count, plan.block_tokens, plan.context_tokens, plan.state_slots, plan.windows
        )
        self._device = device
        self._held = held
        self._timing = timing

    def execute(self, step: Step, boundary: Boundary) -> Boundary:
        """What crosses before its layers in, and after them out; from the plan's last stage only the outputs asked for.

        Raises RemoteProtocolError for a step that contradicts the plan, the block tables or `boundary`.
        """
        if self._loaded is None:
            raise VramancerError("The stage has been unloaded.")
        shard, pool, states = self._loaded
        self._check(step, boundary, shard)
        rows = self._tables.apply(step)
        if step.copies:
            pool.copy(step.copies)
        if not rows:
            self._tables.check_integrity()  # the pipeline is idle: nobody waits for it
            return nothing(shard.leaving, DTYPES[self._plan.dtype], self._device)
        with torch.inference_mode(), self._timing(len(shard.layers), step.token_count):
            batch = Batch(rows, pool, self._device, shard.keepers, native=shard.is_rounded)
            entering = boundary.to(self._device)
            if shard.trace.ragged:
                output = shard.run(entering, batch.positions, batch)
            else:
                output = _run_each(shard, pool, states, batch, rows, entering)
            return output.rows(batch.outputs) if self._is_last else output

    def close(self) -> None:
        """Free weights and cache, and give their bytes back. May be called again."""
        shard = self.give_up()
        if shard is not None:
            shard.unload()
            empty_cache(self._device)

    def give_up(self) -> Shard | None:
        """Free the cache, and give all bytes back. The shard, still loaded, is the caller's; None once closed."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return None
        shard, pool, states = loaded
        pool.clear()
        states.clear()
        release(self._device, self._held)
        return shard

    def _check(self, step: Step, boundary: Boundary, shard: Shard) -> None:
        limits = (shard.vocab_size, self._plan.context_tokens)
        check(boundary, shard.entering, step.token_count, DTYPES[self._plan.dtype], limits)
        if step.token_count > self._plan.max_step_tokens:
            raise RemoteProtocolError(
                f"A step of {step.token_count} tokens came; the plan allows {self._plan.max_step_tokens}."
            )
        if step.output != "rows":
            raise RemoteProtocolError("A step asks for tokens, but this stage does not hold the model's ends.")


def _run_each(
    shard: Shard, pool: KvPool, states: StatePool, batch: Batch, rows: Sequence[PlacedRow], boundary: Boundary
) -> Boundary:
    """Row by row, for layers that keep sequences apart only where each passes alone."""
    parts: list[Boundary] = []
    for row, span in zip(rows, batch.spans(0), strict=True):
        place = SpanPlace(batch, span, pool)
        own, positions = boundary.part(span.first, span.count), batch.positions.narrow(1, span.first, span.count)
        parts.append(shard.run_alone(own, positions, states.cache(row, place), place))
    return joined(parts)


def cache_bytes(shard: Shard, plan: Plan) -> int:
    """What the blocks and the states of a plan take on a stage."""
    groups = shard.groups(plan.windows)
    blocks_bytes = pool_bytes(
        shard.kv_shapes, _block_counts(plan), plan.block_tokens, DTYPES[plan.dtype], groups, plan.kv_cache
    )
    return blocks_bytes + shard.state_elements * plan.state_slots * torch.float32.itemsize


def _block_counts(plan: Plan) -> tuple[int, ...]:
    """By cache group."""
    return plan.block_count, *(window.block_count for window in plan.windows)


def load_stage(
    folder: Path,
    plan: Plan,
    stage: int,
    budget: MemoryBudget,
    device: torch.device,
    progress: Progress,
    timing: Timing,
    old: PagedStage | None = None,
) -> PagedStage:
    """Reserve weights, KV and workspace in one go, then allocate. Raises OverLimitError, ModelError.

    Each part counts as the plan says, or as found here if that is more. `old` gives the layers that it has of these,
    and is closed, whatever comes of it.
    """
    with ExitStack() as undo:
        if old is not None:
            undo.callback(old.close)
        checkpoint = checked(folder, plan)
        placed, dtype = plan.stages[stage], DTYPES[plan.dtype]
        shard = Shard(checkpoint, placed.layers, dtype, plan.quantize)
        undo.callback(shard.unload)
        if plan.kv_cache != "plain" and not shard.trace.ragged:
            raise ModelError("The model's layers keep each sequence's cache themselves, which cannot be rounded.")
        if old is not None and (loaded := old.give_up()) is not None:
            shard.take_over(loaded)
            empty_cache(device)
        held = budget.reserve(f"Layers {placed.layers} of {plan.model.name}", _stage_bytes(shard, plan, placed))
        undo.callback(release, device, held)
        undo.callback(shard.unload)  # first: bytes are given back once their tensors are gone
        shard.load(device, progress)
        groups = shard.groups(plan.windows)
        pool = KvPool(shard.kv_shapes, _block_counts(plan), plan.block_tokens, dtype, device, groups, plan.kv_cache)
        made = PagedStage(plan, shard, pool, device, held, timing)
        undo.pop_all()
    return made


def _stage_bytes(shard: Shard, plan: Plan, placed: StagePlan) -> int:
    workspace_bytes = gather_bytes(shard.kv_shapes, plan.context_tokens, DTYPES[plan.dtype], plan.kv_cache)
    return (
        max(placed.weights_bytes, shard.weights_bytes)
        + max(placed.kv_bytes, cache_bytes(shard, plan))
        + max(placed.workspace_bytes, workspace_bytes)
    )


def checked(folder: Path, plan: Plan) -> Checkpoint:
    """The plan's checkpoint and no other. Raises ModelError."""
    if plan.dtype not in DTYPES:
        raise ModelError(f"The plan computes in '{plan.dtype}', which this node does not know.")
    checkpoint = open_checkpoint(folder)
    if plan.model.digest and checkpoint.digest != plan.model.digest:
        raise ModelError(
            f"The folder of '{plan.model.name}' on this node holds another version of the model than the head's.",
            hint="Copy or download the same version on every node.",
        )
    return checkpoint


def release(device: torch.device, held: Reservation) -> None:
    """Give bytes back whose tensors have just been dropped."""
    empty_cache(device)
    held.close()
