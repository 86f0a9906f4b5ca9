"""One thread per device: every torch call of a node happens here, in the order submitted.

Never imports torch: the work is closures.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from vramancer_cli.errors import VramancerError
from vramancer_cli.telemetry import log

Done = Callable[[Any, BaseException | None], object]

QUEUE_BOUND = 1024


class DeviceClosedError(VramancerError):
    """The device is shutting down."""


class DeviceBusyError(VramancerError):
    """The device has too much work queued."""


class DeviceThread:
    """A DeviceExecutor (see contracts) on a real thread."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()  # wakes fastest
        self._closed = False
        self._lock = threading.Lock()  # nothing is queued behind the end
        self._log = log.get("device")
        self._thread = threading.Thread(target=self._work, name=f"device-{name}", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Raises DeviceClosedError, DeviceBusyError."""
        with self._lock:
            if self._closed:
                raise DeviceClosedError
            if self._queue.qsize() >= QUEUE_BOUND:
                raise DeviceBusyError
            self._queue.put((work, done))

    async def run(self, work: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(work, lambda result, error: loop.call_soon_threadsafe(settle, result, error))
        return await future

    def close(self) -> None:
        """Refuse new work, finish what is queued, and wait for the thread (a running load may take a moment)."""
        with self._lock:
            was_open, self._closed = not self._closed, True
        if was_open:
            self._queue.put(None)
        self._thread.join(timeout=30.0)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._run(*item)
            del item  # tensors must not outlive their work just because this thread waits for more

    def _run(self, work: Callable[[], Any], done: Done) -> None:
        """The door of this thread: an error goes to whoever submitted the work, and never ends the thread."""
        try:
            try:
                result = work()
            except BaseException as error:
                done(None, error)
            else:
                done(result, None)
        except Exception:
            self._log.exception("nobody takes the result of a piece of work")
