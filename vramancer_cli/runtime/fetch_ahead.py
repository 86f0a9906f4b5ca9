"""A worker's idle time: it fetches the layers that it would get if another node were lost, so that they are on its own
disk by then.

A little at a time, only while no step comes; whatever is asked of the node goes before. What has come is kept as all
weights are. Never torch, never decides which layers.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from transport.errors import TransportError
from transport.messages import AheadProgress, FetchLayersAhead, Message
from transport.types import Address
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.weight_files import ByteRange
from vramancer_cli.runtime.checkpoints import FetchedCheckpoints, on_thread
from vramancer_cli.runtime.weight_copy import WeightCopy
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges
from vramancer_cli.telemetry import log

IDLE_S: Final = 2.0
"""No step for so long: then a portion is fetched."""
PORTION_BYTES: Final = 8 << 20
RETRY_S: Final = 30.0
TRIES: Final = 10
DISK_SHARE: Final = 0.5
"""Of what is free on the disk of the shelf, that may be taken for this."""


class FetchAhead:
    """`steps`: how many steps this node has executed; `report` is told how far it is. On the event loop."""

    def __init__(
        self, checkpoints: FetchedCheckpoints, steps: Callable[[], int], report: Callable[[Message], None]
    ) -> None:
        self._checkpoints = checkpoints
        self._steps = steps
        self._report = report
        self._log = log.get("ahead")

    async def run(self, ask: FetchLayersAhead, head: Sequence[Address]) -> None:
        """Until all is here, or it does not come. To be cancelled when something else is asked of the node."""
        for _ in range(TRIES):
            try:
                await self._fetch(ask, head)
                return
            except (TransportError, VramancerError, OSError) as error:
                self._log.info("layers are not fetched ahead of time now", reason=str(error), again_in_s=RETRY_S)
            await asyncio.sleep(RETRY_S)

    async def _fetch(self, ask: FetchLayersAhead, head: Sequence[Address]) -> None:
        ref, shelf = ask.plan.model, self._checkpoints
        await self._until_idle()
        if await shelf.own(ref) is not None:
            self._report(AheadProgress(ask.plan.epoch, 0, 0))
            return
        link = await shelf.dial(head, ask.plan.ends)
        try:
            async with shelf.alone(ref):
                copy = await asyncio.to_thread(WeightCopy, shelf.folder, ref)
                await on_thread(lambda: fetch_heads(link, copy, ref), link.hang_up)
            ranges = [part for layers in ask.layers for part in await shelf.ranges(copy, ask.plan, layers)]
            total_bytes = sum(part.size_bytes for part in ranges)
            if total_bytes > DISK_SHARE * shutil.disk_usage(shelf.folder).free:
                self._log.info("no disk to spare for layers ahead of time", of_bytes=total_bytes)
                return
            there_bytes = 0
            for portion in _portions(ranges):
                await self._until_idle()
                async with shelf.alone(ref):
                    await on_thread(lambda part=portion: fetch_ranges(link, copy, part, _unheard), link.hang_up)
                there_bytes += sum(part.size_bytes for part in portion)
                self._report(AheadProgress(ask.plan.epoch, there_bytes, total_bytes))
            self._log.info("layers are here ahead of time", layers=[str(part) for part in ask.layers])
        finally:
            link.close()

    async def _until_idle(self) -> None:
        before = -1
        while self._steps() != before:
            before = self._steps()
            await asyncio.sleep(IDLE_S)


def _portions(ranges: Sequence[ByteRange]) -> Iterator[list[ByteRange]]:
    portion: list[ByteRange] = []
    for part in ranges:
        portion.append(part)
        if sum(one.size_bytes for one in portion) >= PORTION_BYTES:
            yield portion
            portion = []
    if portion:
        yield portion


def _unheard(_there_bytes: int, _moved_bytes: int) -> None:
    """Told by the portion."""
