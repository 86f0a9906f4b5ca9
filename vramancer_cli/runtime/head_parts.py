"""What the head itself holds of a plan: its own stage, the model's ends, and the data links to the stages it feeds.

Never decides what to hold; how it went becomes a cluster event. Never imports torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from transport.contracts import DataSender
from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.cluster import events
from vramancer_cli.errors import OverLimitError
from vramancer_cli.runtime.contracts import DeviceExecutor, Ends, Engine, Stage
from vramancer_cli.runtime.holding import Holding
from vramancer_cli.telemetry import log


class HeadParts:
    """Of one plan at a time. Methods on the event loop; `let_go` may be called while anything else is awaited."""

    def __init__(
        self, head: NodeId, folder: Path, engine: Engine, device: DeviceExecutor, note: Callable[[events.Event], None]
    ) -> None:
        self._head = head
        self._folder = folder
        self._engine = engine
        self._note = note
        self._log = log.get("head")
        self._loop = asyncio.get_running_loop()
        self._holding = Holding(device)
        self.stage: Stage | None = None

    async def load_stage(self, plan: Plan, stage: int) -> None:
        """Notes StageBecameReady or StageRefused, nothing once it was let go. Raises ModelError."""

        def progress(loaded_bytes: int, total_bytes: int) -> None:
            event = events.StageLoading(self._head, plan.epoch, loaded_bytes, total_bytes, self._loop.time())
            self._loop.call_soon_threadsafe(self._note, event)

        try:
            loaded = await self._holding.load(lambda: self._engine.load_stage(self._folder, plan, stage, progress))
        except OverLimitError as error:
            self._refuse(plan, error, 0)
            return
        if loaded is not None:
            self.stage = loaded
            self._note(events.StageBecameReady(self._head, plan.epoch, direct=True))

    async def load_ends(self, plan: Plan) -> Ends | None:
        """None: over the limit, which is noted as StageRefused, or let go meanwhile. Raises ModelError."""

        def load() -> Ends:
            return self._engine.load_ends(self._folder, plan, lambda _loaded, _total: None)

        try:
            return await self._holding.load(load)
        except OverLimitError as error:
            self._refuse(plan, error, sum(stage.total_bytes for stage in plan.stages if stage.node == self._head))
            return None

    def keep(self, sender: DataSender) -> None:
        """Close it with the rest."""
        self._holding.keep(sender)

    def let_go(self) -> None:
        """Of everything, also of what is still loading, without waiting for it."""
        self.stage = None
        self._holding.let_go()

    async def close(self) -> None:
        """Let go and wait for it, but not for a long load that is in progress."""
        self.stage = None
        await self._holding.close()

    def _refuse(self, plan: Plan, error: OverLimitError, held_bytes: int) -> None:
        """What counts is the head's whole room, not what its own stage (`held_bytes`) leaves of it."""
        self._log.warning("the head has less memory than planned", reason=str(error))
        needed_bytes, present_bytes = error.needed_bytes + held_bytes, error.present_bytes + held_bytes
        self._note(events.StageRefused(self._head, plan.epoch, needed_bytes, present_bytes, str(error)))
