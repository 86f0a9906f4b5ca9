from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, LoopDevice
from tests.helpers.pipeline_bench import HEAD, SMALL, make_plan
from tests.helpers.virtual_time import run
from vramancer_cli.cluster import events
from vramancer_cli.errors import ModelError
from vramancer_cli.runtime.head_parts import HeadParts
from vramancer_cli.runtime.local_devices import LocalDevice

PLAN = make_plan((SMALL, SMALL, SMALL), epoch=3)
STAGE = PLAN.stages[0]


class PartsBench:
    """Parts of a head that has `present_bytes`; each load takes a second."""

    def __init__(self, present_bytes: int) -> None:
        self.engine = ArithmeticEngine(SMALL, present_bytes)
        self.noted: list[events.Event] = []
        self.parts = HeadParts(HEAD, Path(), [LocalDevice(self.engine, LoopDevice(1.0))], self.noted.append)


def play(scene: Callable[[PartsBench], Coroutine[Any, Any, None]], present_bytes: int = SMALL) -> None:
    async def main() -> None:
        await scene(PartsBench(present_bytes))

    run(main())


def test_stage_and_ends_are_loaded_noted_and_given_back() -> None:
    async def scene(bench: PartsBench) -> None:
        await bench.parts.load_stages(PLAN, 0)
        assert await bench.parts.load_ends(PLAN) is not None
        await asyncio.sleep(0)
        loaded = next(event for event in bench.noted if isinstance(event, events.StageLoading))
        assert 0.0 <= loaded.at <= asyncio.get_running_loop().time()
        became = next(event for event in bench.noted if isinstance(event, events.StageBecameReady))
        assert loaded.at <= became.at <= asyncio.get_running_loop().time()
        assert set(bench.noted) == {
            events.StageLoading(HEAD, 3, 1, 1, loaded.at),
            events.StageBecameReady(HEAD, 3, direct=True, at=became.at),
        }
        assert len(bench.parts.stages) == 1
        assert bench.engine.used_bytes == STAGE.total_bytes + PLAN.ends_bytes
        await bench.parts.close()
        assert bench.parts.stages == ()
        assert bench.engine.used_bytes == 0

    play(scene)


def test_a_stage_let_go_while_it_loads_is_never_ready_and_leaves_room_for_the_next() -> None:
    async def scene(bench: PartsBench) -> None:
        old = asyncio.create_task(bench.parts.load_stages(PLAN, 0))
        await asyncio.sleep(0.5)
        bench.parts.drop_stages()
        await bench.parts.load_stages(make_plan((SMALL, SMALL, SMALL), epoch=4), 0)
        await old
        ready = [event.epoch for event in bench.noted if isinstance(event, events.StageBecameReady)]
        assert ready == [4]
        assert bench.engine.used_bytes == STAGE.total_bytes

    play(scene)


def test_a_stage_over_the_limit_is_refused_with_both_figures() -> None:
    async def scene(bench: PartsBench) -> None:
        await bench.parts.load_stages(PLAN, 0)
        assert bench.noted == [events.StageRefused(HEAD, 3, STAGE.total_bytes, 5000, "too much")]

    play(scene, 5000)


def test_ends_over_the_limit_are_refused_with_the_heads_whole_room() -> None:
    async def scene(bench: PartsBench) -> None:
        await bench.parts.load_stages(PLAN, 0)
        assert await bench.parts.load_ends(PLAN) is None
        needed_bytes, present_bytes = STAGE.total_bytes + PLAN.ends_bytes, STAGE.total_bytes + 7
        assert bench.noted[-1] == events.StageRefused(HEAD, 3, needed_bytes, present_bytes, "too much")

    play(scene, STAGE.total_bytes + 7)


def test_a_checkpoint_that_cannot_be_used_is_the_callers_to_know() -> None:
    async def scene(bench: PartsBench) -> None:
        bench.engine.loads_badly = ModelError("A tensor is missing.")
        with pytest.raises(ModelError):
            await bench.parts.load_stages(PLAN, 0)
        with pytest.raises(ModelError):
            await bench.parts.load_ends(PLAN)
        assert bench.noted == []

    play(scene)
