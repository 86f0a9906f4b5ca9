"""Where a worker has the weights of its stage from: a folder of its own, the hub's cache, or the head.

What another machine's folder is called means nothing here: what counts is the digest. Never torch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from transport.contracts import BulkLink
from transport.errors import LinkClosedError, UnreachableError
from transport.messages import Assign, FetchProgress, Message, ModelRef, Plan
from transport.types import Address, LayerRange, NodeId
from vramancer_cli.errors import ModelError
from vramancer_cli.models.weight_files import ByteRange
from vramancer_cli.runtime import kept_weights, store, whole_file
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.weight_copy import WeightCopy
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges
from vramancer_cli.telemetry import log

RETRY_FIRST_S: Final = 0.5
RETRY_LAST_S: Final = 5.0
NO_PROGRESS_S: Final = 600.0
"""A transfer is taken up again for so long after it last got further."""
REPORT_EVERY_S: Final = 0.5
LOG_EVERY_S: Final = 5.0
_LOCK_POLL_S: Final = 0.2

Report = Callable[[Message], None]
T = TypeVar("T")


class ClosableBulkLink(BulkLink, Protocol):
    def close(self) -> None: ...


DialBulk = Callable[[Sequence[Address], NodeId], Awaitable[ClosableBulkLink]]


class Checkpoints(Protocol):
    """Finds the folder that a stage is loaded from."""

    async def find(self, assign: Assign, head: Sequence[Address], report: Report) -> Path:
        """A folder in which everything lies that the stage needs. Raises ModelError, TransportError, OSError."""
        ...


class OwnCheckpoints:
    """Folders of this machine, and the hub."""

    async def find(self, assign: Assign, head: Sequence[Address], report: Report) -> Path:
        return await store.locate_ref(assign.plan.model)


class FetchedCheckpoints:
    """A folder of this machine where it holds the same model; else a copy on `shelf`, filled from the head."""

    def __init__(self, reader: LocalDevice, shelf: Path, dial: DialBulk) -> None:
        """`reader` is whose engine reads checkpoints, none of whose weights it needs for that."""
        self._engine = reader.engine
        self._device = reader.executor
        self.folder = shelf
        self.dial = dial
        self._log = log.get("weights")

    async def find(self, assign: Assign, head: Sequence[Address], report: Report) -> Path:
        own = await self.own(assign.plan.model)
        if own is not None:
            return own
        try:
            return await self._fetched(assign, head, report)
        except OSError as error:
            raise ModelError(f"Weights cannot be kept in {self.folder}: {error.strerror or error}.") from error

    async def _fetched(self, assign: Assign, head: Sequence[Address], report: Report) -> Path:
        ref = assign.plan.model
        async with self.alone(ref):
            copy = await asyncio.to_thread(WeightCopy, self.folder, ref)
            progress = _Progress(assign, report, self._log)
            await self._until_there(assign, head, copy, progress)
            progress.end()
            return copy.folder

    async def own(self, ref: ModelRef) -> Path | None:
        """A folder that has the head's model already, or None."""
        folder = await store.locate_own(ref, self.folder)
        if folder is None:
            return None
        try:
            same: bool = await self._device.run(lambda: self._engine.digest(folder) == ref.digest)
        except ModelError as error:
            self._log.warning("own copy cannot be used", folder=str(folder), reason=str(error))
            return None
        if not same:
            self._log.info("own copy is another version", folder=str(folder))
        return folder if same else None

    @contextlib.asynccontextmanager
    async def alone(self, ref: ModelRef) -> AsyncGenerator[None]:
        """Several nodes of one machine may share a shelf: one of them writes."""
        await asyncio.to_thread(whole_file.make_private, self.folder)
        while True:
            with kept_weights.alone(self.folder, ref.digest) as free:
                if free:
                    yield
                    return
            await asyncio.sleep(_LOCK_POLL_S)

    async def ranges(self, copy: WeightCopy, plan: Plan, layers: LayerRange) -> Sequence[ByteRange]:
        """Where these layers lie in a copy whose headers are there. Raises ModelError."""
        found: Sequence[ByteRange] = await self._device.run(
            lambda: self._engine.layer_ranges(copy.folder, plan, layers)
        )
        return found

    async def _until_there(
        self, assign: Assign, head: Sequence[Address], copy: WeightCopy, progress: _Progress
    ) -> None:
        """Take the transfer up again as often as the link is cut, while it gets on."""
        pause_s = RETRY_FIRST_S
        while True:
            before = progress.moved_bytes
            try:
                await self._transfer(assign, head, copy, progress)
                return
            except (LinkClosedError, UnreachableError) as error:
                if progress.stands_still():
                    raise
                pause_s = RETRY_FIRST_S if progress.moved_bytes > before else min(2 * pause_s, RETRY_LAST_S)
                self._log.warning("transfer of weights cut, taking it up again", reason=str(error), in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _transfer(self, assign: Assign, head: Sequence[Address], copy: WeightCopy, progress: _Progress) -> None:
        plan = assign.plan
        link = await self.dial(head, plan.ends)
        try:
            await on_thread(lambda: fetch_heads(link, copy, plan.model), link.hang_up)
            ranges = await self.ranges(copy, plan, plan.run_layers(assign.stage))
            progress.begin(sum(part.size_bytes for part in ranges))
            await on_thread(lambda: fetch_ranges(link, copy, ranges, progress.arrived), link.hang_up)
        finally:
            link.close()


async def on_thread(work: Callable[[], T], wake: Callable[[], None]) -> T:
    """`work()` on a thread that has ended when this returns, cancelled or not."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        wake()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # it is of no interest any more
        raise


class _Progress:
    """What is told of one transfer. `arrived` comes from the fetching thread, all else on the loop."""

    def __init__(self, assign: Assign, report: Report, logger: log.BoundLogger) -> None:
        self._epoch = assign.plan.epoch
        self._model = assign.plan.model.name
        self._report = report
        self._log = logger
        self._loop = asyncio.get_running_loop()
        self._began_s = self._reported_s = self._logged_s = self._moved_s = self._loop.time()
        self._total_bytes = self._there_bytes = self._before_bytes = 0
        self.moved_bytes = 0

    def begin(self, total_bytes: int) -> None:
        """Also when it is taken up again."""
        self._total_bytes, self._before_bytes = total_bytes, self.moved_bytes
        self._log.info("fetching weights from the head", model=self._model, of=_mib(total_bytes))
        self._tell(0)

    def arrived(self, there_bytes: int, moved_bytes: int) -> None:
        self._loop.call_soon_threadsafe(self._heard, there_bytes, self._before_bytes + moved_bytes)

    def stands_still(self) -> bool:
        return self._loop.time() - self._moved_s > NO_PROGRESS_S

    def end(self) -> None:
        took_s = self._loop.time() - self._began_s
        moved, kept = _mib(self.moved_bytes), _mib(self._total_bytes - self.moved_bytes)
        self._log.info("weights are here", model=self._model, moved=moved, kept=kept, seconds=round(took_s, 1))

    def _heard(self, there_bytes: int, moved_bytes: int) -> None:
        now_s = self._loop.time()
        self._moved_s = now_s
        self.moved_bytes = moved_bytes
        if now_s - self._reported_s >= REPORT_EVERY_S or there_bytes == self._total_bytes:
            self._reported_s = now_s
            self._tell(there_bytes)
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            self._log.info("weights arrive", here=_mib(there_bytes), of=_mib(self._total_bytes))

    def _tell(self, there_bytes: int) -> None:
        self._report(FetchProgress(self._epoch, there_bytes, self._total_bytes))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
