"""Loading a node's stages of a plan: one after the other, each on its device, with one progress for all of them.

Not side by side: reading takes most of the time, and transformers builds models through switches of the whole process.
Never decides what to do when it fails. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from transport.messages import Plan, Step
from vramancer_cli.runtime.contracts import Engine, Progress, Stage
from vramancer_cli.runtime.holding import Holding
from vramancer_cli.runtime.local_devices import Leg, LocalDevice

SLOT: Final = "stage"
"""Of each device, in a Holding."""

Load = Callable[[Engine, int, Progress, Stage | None], Stage]
"""Makes the stage of this index of the one that the device held before, on the device's thread."""


@dataclass(frozen=True, slots=True)
class HeldStage:
    """A loaded stage of a plan, and the device that it is on."""

    index: int
    device: LocalDevice
    stage: Stage

    def leg(self, step: Step) -> Leg:
        """What the stage does to a step."""
        return Leg(self.device, partial(self.stage.execute, step), "compute", self.index)


class StageLoad:
    """One load of the stages of `plan` from `first` on that are on one node. `at`: the stage that it has come to."""

    def __init__(
        self, plan: Plan, first: int, devices: Sequence[LocalDevice], holding: Holding, progress: Progress
    ) -> None:
        self._plan = plan
        self._stages = plan.run(first)
        self._devices = devices
        self._holding = holding
        self._progress = progress
        self.at = first

    @property
    def position(self) -> int:
        """Which of the node's devices `at` is for."""
        return self._plan.stages[self.at].position

    async def run(self, load: Load) -> tuple[HeldStage, ...] | None:
        """None when they were let go meanwhile. Raises what `load` raises."""
        used = {self._plan.stages[index].position for index in self._stages}
        drop_stages(self._holding, (position for position in range(len(self._devices)) if position not in used))
        held: list[HeldStage] = []
        for index in self._stages:
            self.at = index
            device = self._devices[self.position]
            work = partial(load, device.engine, index, self._heard(index))
            stage = await self._holding.load(SLOT, work, self.position)
            if stage is None:
                return None
            held.append(HeldStage(index, device, stage))
        return tuple(held)

    def _heard(self, index: int) -> Progress:
        """What a stage's own progress is of the whole; of the other stages it counts what is planned."""
        planned = [self._plan.stages[other].weights_bytes for other in self._stages]
        before_bytes = sum(planned[: index - self._stages.start])
        behind_bytes = sum(planned[index - self._stages.start + 1 :])
        return lambda loaded, total: self._progress(before_bytes + loaded, before_bytes + total + behind_bytes)


def drop_stages(holding: Holding, positions: Iterable[int]) -> None:
    """Close the stages on these devices, also such as are still loading, without waiting for it."""
    for position in positions:
        holding.drop(SLOT, position)
