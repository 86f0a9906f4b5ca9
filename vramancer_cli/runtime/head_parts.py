"""What the head itself holds of a plan: its own stages, the model's ends, and the data links to the stages it feeds.

Never decides what to hold; how it went becomes a cluster event. Never imports torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from transport.contracts import DataSender
from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.cluster import events
from vramancer_cli.errors import OverLimitError
from vramancer_cli.runtime.contracts import Ends, Engine, Progress, Stage
from vramancer_cli.runtime.holding import Holding
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.stage_load import SLOT, HeldStage, StageLoad, drop_stages
from vramancer_cli.telemetry import log


class HeadParts:
    """Of one plan at a time; what the next one still wants stays. Methods on the event loop.

    `unlink` and `drop_stages` may be called while anything else is awaited.
    """

    def __init__(
        self, head: NodeId, folder: Path, devices: Sequence[LocalDevice], note: Callable[[events.Event], None]
    ) -> None:
        self._head = head
        self._folder = folder
        self._note = note
        self._log = log.get("head")
        self._loop = asyncio.get_running_loop()
        self._devices = devices
        self._holding = Holding([device.executor for device in devices])
        self._ends: tuple[Plan, Ends] | None = None
        self.stages: tuple[HeldStage, ...] = ()

    async def load_stages(self, plan: Plan, first: int) -> None:
        """Those from `first` on. Notes StageBecameReady or StageRefused, nothing once they were let go, or others were
        asked for.

        Raises ModelError.
        """
        self.stages = ()
        if not self._has_ends_of(plan):
            self._drop_ends()  # they may be in the way

        def progress(loaded_bytes: int, total_bytes: int) -> None:
            event = events.StageLoading(self._head, plan.epoch, loaded_bytes, total_bytes, self._loop.time())
            self._loop.call_soon_threadsafe(self._note, event)

        def load(engine: Engine, index: int, heard: Progress, old: Stage | None) -> Stage:
            return engine.load_stage(self._folder, plan, index, heard, old)

        loading = StageLoad(plan, first, self._devices, self._holding, progress)
        try:
            await self._holding.settle(SLOT)
            held = await loading.run(load)
        except OverLimitError as error:
            self._refuse(plan, loading.position, error, plan.ends_bytes if self._ends and not loading.position else 0)
            return
        if held is not None:
            self.stages = held
            self._note(events.StageBecameReady(self._head, plan.epoch, direct=True))

    async def load_ends(self, plan: Plan) -> Ends | None:
        """On the first device. None: over the limit, which is noted as StageRefused, or let go meanwhile.

        Raises ModelError.
        """
        if self._ends is not None and self._has_ends_of(plan):
            return self._ends[1]

        def load(old: Ends | None) -> Ends:
            if old is not None:
                old.close()
            return self._devices[0].engine.load_ends(self._folder, plan, lambda _loaded, _total: None)

        try:
            ends = await self._holding.load("ends", load)
        except OverLimitError as error:
            beside = (stage.total_bytes for stage in plan.stages if (stage.node, stage.position) == (self._head, 0))
            self._refuse(plan, 0, error, sum(beside))
            return None
        self._ends = None if ends is None else (plan, ends)
        return ends

    def _has_ends_of(self, plan: Plan) -> bool:
        """Whether the ends that are here, of whatever plan, are the same as this one's."""
        if self._ends is None:
            return False
        made_for = self._ends[0]
        alike = (plan.model, plan.dtype, plan.quantize, plan.ends_bytes)
        return alike == (made_for.model, made_for.dtype, made_for.quantize, made_for.ends_bytes)

    def _drop_ends(self) -> None:
        self._ends = None
        self._holding.drop("ends")

    def keep(self, sender: DataSender) -> None:
        """Close it with the rest."""
        self._holding.keep(sender)

    def unlink(self) -> None:
        """Close the data links, without waiting for it; what is loaded stays for the next plan."""
        self._holding.drop_links()

    def drop_stages(self) -> None:
        """Also those that are still loading, without waiting for it."""
        self.stages = ()
        drop_stages(self._holding, range(len(self._devices)))

    async def close(self) -> None:
        """Let go and wait for it, but not for a long load that is in progress."""
        self.stages, self._ends = (), None
        await self._holding.close()

    def _refuse(self, plan: Plan, position: int, error: OverLimitError, held_bytes: int) -> None:
        """What counts is the device's whole room, not what the stage there (`held_bytes`) leaves of it."""
        self._log.warning("the head has less memory than planned", reason=str(error))
        needed_bytes, present_bytes = error.needed_bytes + held_bytes, error.present_bytes + held_bytes
        self._note(events.StageRefused(self._head, plan.epoch, needed_bytes, present_bytes, str(error), position))
