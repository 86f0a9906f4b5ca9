"""A stage: a shard with its KV cache at a place in the pipeline, executing steps.

Must never import the pipeline, links or clocks: a local and a remote stage are the same thing here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from transport.errors import RemoteProtocolError
from transport.messages import Plan, Step
from vramancer_cli.engine.batch import Batch
from vramancer_cli.engine.block_tables import BlockTables
from vramancer_cli.engine.checkpoint import Checkpoint, open_checkpoint
from vramancer_cli.engine.devices import empty_cache
from vramancer_cli.engine.kv_cache import KvPool, gather_bytes, pool_bytes
from vramancer_cli.engine.memory import MemoryBudget, Reservation
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.weights import Progress
from vramancer_cli.errors import ModelError, VramancerError

Count = Callable[[int], None]
"""Told how many (layer, token) pairs were executed."""


class PagedStage:
    """Implements the runtime's `Stage`. Every method on the device's thread."""

    def __init__(self, plan: Plan, shard: Shard, pool: KvPool, device: torch.device, held: Reservation, count: Count):
        self.weights_bytes = shard.weights_bytes
        self.kv_bytes = pool_bytes(shard.kv_shapes, plan.block_count * plan.block_tokens, DTYPES[plan.dtype])
        self._plan = plan
        self._is_last = shard.layers.end == plan.stages[-1].layers.end
        self._loaded: tuple[Shard, KvPool] | None = (shard, pool)
        self._tables = BlockTables(plan.block_count, plan.block_tokens, plan.context_tokens, plan.state_slots)
        self._device = device
        self._held = held
        self._count = count

    def execute(self, step: Step, hidden: torch.Tensor) -> torch.Tensor:
        """[step.token_count, hidden] in; the same out, but from the plan's last stage only the outputs asked for.

        Raises RemoteProtocolError for a step that contradicts the plan, the block tables or `hidden`.
        """
        if self._loaded is None:
            raise VramancerError("The stage has been unloaded.")
        shard, pool = self._loaded
        self._check(step, hidden, shard)
        rows = self._tables.apply(step)
        if step.copies:
            pool.copy(step.copies)
        if not rows:
            self._tables.check_integrity()  # the pipeline is idle: nobody waits for it
            return hidden
        with torch.inference_mode():
            batch = Batch(rows, pool, self._device)
            output = shard.run(hidden.to(self._device), batch.positions, batch)
            self._count(len(shard.layers) * step.token_count)
            return output.index_select(0, batch.outputs) if self._is_last else output

    def close(self) -> None:
        """Free weights and cache, and give their bytes back. May be called again."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            shard, pool = loaded
            shard.unload()
            pool.clear()
            release(self._device, self._held)

    def _check(self, step: Step, hidden: torch.Tensor, shard: Shard) -> None:
        expected = (step.token_count, shard.hidden_size)
        if tuple(hidden.shape) != expected or hidden.dtype != DTYPES[self._plan.dtype]:
            raise RemoteProtocolError(
                f"Hidden states {tuple(hidden.shape)} of {hidden.dtype} came, {expected} {self._plan.dtype} were due."
            )
        if step.token_count > self._plan.max_step_tokens:
            raise RemoteProtocolError(
                f"A step of {step.token_count} tokens came; the plan allows {self._plan.max_step_tokens}."
            )
        if step.output != "rows":
            raise RemoteProtocolError("A step asks for tokens, but this stage does not hold the model's ends.")


def load_stage(
    folder: Path,
    plan: Plan,
    stage: int,
    budget: MemoryBudget,
    device: torch.device,
    progress: Progress,
    count: Count,
) -> PagedStage:
    """Reserve weights, KV and workspace in one go, then allocate. Raises OverLimitError, ModelError.

    Each part counts as the plan says, or as found here if that is more.
    """
    checkpoint = checked(folder, plan)
    placed = plan.stages[stage]
    dtype = DTYPES[plan.dtype]
    shard = Shard(checkpoint, placed.layers, dtype, plan.quantize)
    kv_bytes = pool_bytes(shard.kv_shapes, plan.block_count * plan.block_tokens, dtype)
    workspace_bytes = gather_bytes(shard.kv_shapes, plan.context_tokens, dtype)
    total_bytes = (
        max(placed.weights_bytes, shard.weights_bytes)
        + max(placed.kv_bytes, kv_bytes)
        + max(placed.workspace_bytes, workspace_bytes)
    )
    held = budget.reserve(f"Layers {placed.layers} of {plan.model.name}", total_bytes)
    try:
        shard.load(device, progress)
        pool = KvPool(shard.kv_shapes, plan.block_count, plan.block_tokens, dtype, device)
    except BaseException:
        shard.unload()
        release(device, held)
        raise
    return PagedStage(plan, shard, pool, device, held, count)


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
