"""What a node holds of a plan: the loaded parts of the model, and the data links that lead onward.

Parts are loaded and closed on their device's thread, in the order asked for. Whatever was loading there when the node
let go is therefore closed before anything asked for later is loaded, and nothing here has to wait for a load to end.
Never imports torch: parts come out of closures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

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
        self._turn = 0  # counts `let_go`: what an older turn loads is wanted no more
        self._parts: list[list[Closable]] = [[] for _ in devices]  # each touched on its device's thread only
        self._links: list[Closable] = []

    async def settle(self) -> None:
        """Wait until no device is at what was asked for before: models are built through switches of the process."""
        if len(self._devices) > 1:  # one alone does everything in order
            for device in self._devices:
                await device.run(lambda: None)

    async def load(self, work: Callable[[], P], position: int = 0) -> P | None:
        """Keep what `work` returns on the device at `position`; None when it was let go meanwhile.

        Raises what `work` raises.
        """
        turn = self._turn

        def load() -> P | None:
            if self._turn != turn:
                return None
            part = work()
            self._parts[position].append(part)
            return part

        part: P | None = await self._devices[position].run(load)
        return part if self._turn == turn else None

    def keep(self, link: Closable) -> None:
        """Closing a link may take its grace period, so that happens on a device's thread too, not on the loop."""
        self._links.append(link)

    def let_go(self) -> None:
        """Close everything, also what is still loading. Does not wait for it."""
        self._turn += 1
        links, self._links = self._links, []
        for position, device in enumerate(self._devices):
            device.submit(partial(self._close, position, () if position else links), self._closed)

    async def close(self) -> None:
        """Let go, and wait for it, but not for a long load that is in progress."""
        self.let_go()
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                for device in self._devices:
                    await device.run(lambda: None)
        except TimeoutError:
            self._log.warning("still loading while closing")

    def _close(self, position: int, links: Sequence[Closable]) -> None:
        """On the device's thread."""
        parts, self._parts[position] = self._parts[position], []
        with contextlib.ExitStack() as stack:  # one that fails to close does not keep the others
            for closable in (*parts, *links):
                stack.callback(closable.close)

    def _closed(self, _result: object, error: BaseException | None) -> None:
        if error is not None:
            self._log.error("letting go failed", error=repr(error))
