"""Loading several stages of one node, on a virtual clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, LoopDevice, facts
from tests.helpers.simulated_cluster import SETTINGS, node_id
from tests.helpers.virtual_time import run
from vramancer_cli.errors import OverLimitError
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place
from vramancer_cli.runtime.contracts import Engine, Progress, Stage
from vramancer_cli.runtime.holding import Holding
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.stage_load import SLOT, StageLoad

LIMIT_BYTES = 12_000
DEVICE = ArithmeticEngine(LIMIT_BYTES).device_facts()
HEAD, WORKER = node_id(0), node_id(1)
PLAN = place(
    facts(),
    [
        DeviceCapacity(node, "", DEVICE, LIMIT_BYTES, position)
        for node, position in ((HEAD, 0), (WORKER, 0), (WORKER, 1))
    ],
    HEAD,
    SETTINGS,
    1,
)


class Bench:
    """A node of two devices that is assigned the stages 1 and 2. `told` has the progress."""

    def __init__(self, *present_bytes: int) -> None:
        self.engines = [ArithmeticEngine(LIMIT_BYTES, present, index) for index, present in enumerate(present_bytes)]
        self.devices = [LocalDevice(engine, LoopDevice(1.0)) for engine in self.engines]
        self.holding = Holding([device.executor for device in self.devices])
        self.told: list[tuple[int, int]] = []
        self.load = StageLoad(PLAN, 1, self.devices, self.holding, lambda *now: self.told.append(now))

    def loads(self, engine: Engine, index: int, progress: Progress, old: Stage | None) -> Stage:
        progress(0, 100)
        return engine.load_stage(Path(), PLAN, index, lambda _loaded, _total: progress(100, 100), old)


def test_each_stage_goes_to_its_device_and_progress_is_of_all() -> None:
    async def scene() -> None:
        bench = Bench(LIMIT_BYTES, LIMIT_BYTES)
        held = await bench.load.run(bench.loads)
        assert held is not None
        assert [(stage.index, stage.device) for stage in held] == list(zip((1, 2), bench.devices, strict=True))
        assert [engine.used_bytes for engine in bench.engines] == [stage.total_bytes for stage in PLAN.stages[1:]]
        planned = PLAN.stages[1].weights_bytes
        assert bench.told == [(0, 100 + planned), (100, 100 + planned), (planned, 100 + planned), (100 + planned,) * 2]
        assert bench.told[-1][0] == bench.told[-1][1]

    run(scene())


def test_it_says_at_which_stage_and_device_it_failed() -> None:
    async def scene() -> None:
        bench = Bench(LIMIT_BYTES, 10)
        with pytest.raises(OverLimitError):
            await bench.load.run(bench.loads)
        assert (bench.load.at, bench.load.position) == (2, 1)
        bench.holding.let_go()
        await bench.holding.settle(SLOT)
        assert [engine.used_bytes for engine in bench.engines] == [0, 0]

    run(scene())


def test_letting_go_between_two_stages_loads_no_more() -> None:
    async def scene() -> None:
        bench = Bench(LIMIT_BYTES, LIMIT_BYTES)
        loading = asyncio.create_task(bench.load.run(bench.loads))
        await asyncio.sleep(0.5)
        bench.holding.let_go()
        assert await loading is None
        await bench.holding.settle(SLOT)
        assert [engine.used_bytes for engine in bench.engines] == [0, 0]
        assert bench.load.at == 1

    run(scene())


def test_a_stage_is_made_of_what_its_device_held_and_a_device_without_one_holds_nothing() -> None:
    fewer = place(
        facts(), [DeviceCapacity(node, "", DEVICE, 3 * LIMIT_BYTES) for node in (HEAD, WORKER)], HEAD, SETTINGS, 2
    )

    async def scene() -> None:
        bench = Bench(3 * LIMIT_BYTES, 3 * LIMIT_BYTES)
        await bench.load.run(bench.loads)
        before = bench.engines[0].layers_loaded
        kept = [stage for stage in fewer.stages if stage.node == WORKER]
        load = StageLoad(fewer, len(fewer.stages) - len(kept), bench.devices, bench.holding, lambda *_: None)

        def loads(engine: Engine, index: int, progress: Progress, old: Stage | None) -> Stage:
            assert old is not None
            return engine.load_stage(Path(), fewer, index, progress, old)

        held = await load.run(loads)
        await bench.holding.settle(SLOT)
        assert held is not None and len(held) == len(kept)
        assert [engine.used_bytes for engine in bench.engines] == [sum(s.total_bytes for s in kept), 0]
        was, now = (set(range(s.layers.start, s.layers.end)) for s in (PLAN.stages[1], kept[0]))
        assert bench.engines[0].layers_loaded - before == len(now - was) < len(now)

    run(scene())
