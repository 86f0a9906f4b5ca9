"""What a node holds of a plan: the loaded parts of the model, and the data links that lead onward.

Parts are loaded, replaced and closed on the device's thread, in the order asked for. Whatever was loading when the node
let go, or was told to hold another part, is therefore there before anything asked for later, which closes it or is made
of it; and nothing here has to wait for a load to end.
Never imports torch: parts come out of closures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from vramancer_cli.runtime.contracts import DeviceExecutor
from vramancer_cli.telemetry import log

CLOSE_DEADLINE_S = 10.0


class Closable(Protocol):
    def close(self) -> None: ...


P = TypeVar("P", bound=Closable)


class Holding:
    """Methods on the event loop."""

    def __init__(self, device: DeviceExecutor) -> None:
        self._device = device
        self._log = log.get("holding")
        self._turns: Counter[str] = Counter()  # by slot: what an older turn loads is wanted no more
        self._parts: dict[str, Any] = {}  # by slot; touched on the device's thread only
        self._links: list[Closable] = []

    async def load(self, slot: str, work: Callable[[Any], P]) -> P | None:
        """Keep what `work` makes of what is in the slot (None where it is empty), which it has to close or to keep.

        None when it was let go meanwhile, or something else was asked for. Raises what `work` raises: then the slot
        is empty.
        """
        turn = self._next_turn(slot)

        def load() -> P | None:
            if self._turns[slot] != turn:
                return None
            part = work(self._parts.pop(slot, None))
            self._parts[slot] = part
            return part

        part: P | None = await self._device.run(load)
        return part if self._turns[slot] == turn else None

    def drop(self, slot: str) -> None:
        """Close what is in the slot, also what is still loading. Does not wait for it."""
        self._next_turn(slot)
        self._device.submit(lambda: self._close([slot], []), self._closed)

    def _next_turn(self, slot: str) -> int:
        self._turns[slot] += 1
        return self._turns[slot]

    def keep(self, link: Closable) -> None:
        """Closing a link may take its grace period, so that happens on the device's thread too, not on the loop."""
        self._links.append(link)

    def drop_links(self) -> None:
        """Close all links, and keep the parts. Does not wait for it."""
        links, self._links = self._links, []
        if links:
            self._device.submit(lambda: self._close([], links), self._closed)

    def let_go(self) -> None:
        """Close everything, also what is still loading. Does not wait for it."""
        slots = list(self._turns)
        for slot in slots:
            self._next_turn(slot)
        links, self._links = self._links, []
        self._device.submit(lambda: self._close(slots, links), self._closed)

    async def close(self) -> None:
        """Let go, and wait for it, but not for a long load that is in progress."""
        self.let_go()
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._device.run(lambda: None)
        except TimeoutError:
            self._log.warning("still loading while closing")

    def _close(self, slots: Iterable[str], links: Iterable[Closable]) -> None:
        """On the device's thread."""
        parts = [self._parts.pop(slot) for slot in slots if slot in self._parts]
        with contextlib.ExitStack() as stack:  # one that fails to close does not keep the others
            for closable in (*parts, *links):
                stack.callback(closable.close)

    def _closed(self, _result: object, error: BaseException | None) -> None:
        if error is not None:
            self._log.error("letting go failed", error=repr(error))
