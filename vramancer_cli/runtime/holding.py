"""What a node holds of a plan: the loaded parts of the model, and the data links that lead onward.

Parts are loaded, replaced and closed on their device's thread, in the order asked for. Whatever was loading there when
the node let go, or was told to hold another part, is therefore there before anything asked for later, which closes it
or is made of it; and nothing here has to wait for a load to end.
Never imports torch: parts come out of closures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from vramancer_cli.runtime.contracts import DeviceExecutor
from vramancer_cli.telemetry import log

CLOSE_DEADLINE_S = 10.0


class Closable(Protocol):
    def close(self) -> None: ...


P = TypeVar("P", bound=Closable)


class Holding:
    """On the devices of a node. Methods on the event loop."""

    def __init__(self, devices: Sequence[DeviceExecutor]) -> None:
        self._devices = devices
        self._log = log.get("holding")
        self._turns: Counter[tuple[int, str]] = Counter()  # by device, slot: what an older turn loads is wanted no more
        self._parts: list[dict[str, Any]] = [{} for _ in devices]  # by slot; each touched on its device's thread only
        self._links: list[Closable] = []

    async def settle(self, slot: str) -> None:
        """Begin nothing more that was asked for this slot of any device, and wait until none is at it: models are built
        through switches of the process. What is there stays."""
        for position in range(len(self._devices)):
            self._next_turn(position, slot)
        if len(self._devices) > 1:  # one alone does everything in order
            for device in self._devices:
                await device.run(lambda: None)

    async def load(self, slot: str, work: Callable[[Any], P], position: int = 0) -> P | None:
        """Keep what `work` makes of what is in the slot (None where it is empty), which it has to close or to keep.

        On the device at `position`. None when it was let go meanwhile, or something else was asked for. Raises what
        `work` raises: then the slot is empty.
        """
        turn = self._next_turn(position, slot)

        def load() -> P | None:
            if self._turns[position, slot] != turn:
                return None
            part = work(self._parts[position].pop(slot, None))
            self._parts[position][slot] = part
            return part

        part: P | None = await self._devices[position].run(load)
        return part if self._turns[position, slot] == turn else None

    def drop(self, slot: str, position: int = 0) -> None:
        """Close what is in the slot, also what is still loading. Does not wait for it."""
        self._next_turn(position, slot)
        self._devices[position].submit(partial(self._close, position, [slot], []), self._closed)

    def _next_turn(self, position: int, slot: str) -> int:
        self._turns[position, slot] += 1
        return self._turns[position, slot]

    def keep(self, link: Closable) -> None:
        """Closing a link may take its grace period, so that happens on a device's thread too, not on the loop."""
        self._links.append(link)

    def drop_links(self) -> None:
        """Close all links, and keep the parts. Does not wait for it."""
        links, self._links = self._links, []
        if links:
            self._devices[0].submit(partial(self._close, 0, [], links), self._closed)

    def let_go(self) -> None:
        """Close everything, also what is still loading. Does not wait for it."""
        links, self._links = self._links, []
        for position, device in enumerate(self._devices):
            slots = [slot for where, slot in self._turns if where == position]
            for slot in slots:
                self._next_turn(position, slot)
            device.submit(partial(self._close, position, slots, () if position else links), self._closed)

    async def close(self) -> None:
        """Let go, and wait for it, but not for a long load that is in progress."""
        self.let_go()
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                for device in self._devices:
                    await device.run(lambda: None)
        except TimeoutError:
            self._log.warning("still loading while closing")

    def _close(self, position: int, slots: Iterable[str], links: Iterable[Closable]) -> None:
        """On the device's thread."""
        parts = [self._parts[position].pop(slot) for slot in slots if slot in self._parts[position]]
        with contextlib.ExitStack() as stack:  # one that fails to close does not keep the others
            for closable in (*parts, *links):
                stack.callback(closable.close)

    def _closed(self, _result: object, error: BaseException | None) -> None:
        if error is not None:
            self._log.error("letting go failed", error=repr(error))
