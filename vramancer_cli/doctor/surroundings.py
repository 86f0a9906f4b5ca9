"""What is around the program: its state folder, its ports, the network, the disk.

Looks without leaving a trace: nothing is made that stays. Never torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from transport.errors import PortBusyError
from vramancer_cli.doctor.finding import Observation, gib
from vramancer_cli.errors import VramancerError
from vramancer_cli.settings import LOOPBACK

if TYPE_CHECKING:
    from vramancer_cli.runtime.run_file import RunRecord

LOOK_S: Final = 1.0
LITTLE_DISK_BYTES: Final = 5 * 2**30


class StateFolderUnusableError(VramancerError):
    """The state folder cannot be written."""

    hint = "Name another folder with --state-dir."


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a node would live: its state folder and ports, as `start` would take them. Port 0: any free one."""

    folder: Path
    port: int
    node_port: int

    def state_folder(self) -> Observation:
        """Readable, writable, private, and whose it is.

        Raises StateFolderUnusableError, StateFolderError, TrustError.
        """
        if not self.folder.exists():
            _check_creatable(self.folder)
            return Observation(f"{self.folder} will be made at the first start")
        words = f"{self.folder}, {_membership(self.folder)}"
        _check_writable(self.folder)
        if os.name == "posix" and self.folder.stat().st_mode & 0o077:
            return Observation(f"{words}; other users can look into it", "warning", f"Use: chmod 700 {self.folder}")
        return Observation(words)

    def api_port(self) -> Observation:
        """A head must have this very port. Raises UsageError for one that this user may not open."""
        return self._port(self.port, Observation("", "failed"))

    def peer_port(self) -> Observation:
        """A node takes another where this one is busy. Raises UsageError for one that this user may not open."""
        moves = Observation("", "warning", "A node takes a free one then, or the one named with --node-port.")
        return self._port(self.node_port, moves)

    def addresses(self) -> Observation:
        from transport.discovery import local_addresses

        hosts = [address.host for address in local_addresses(self.node_port)]
        if all(ipaddress.ip_address(host.partition("%")[0]).is_loopback for host in hosts):
            return Observation("none that another machine could reach", "warning", "Connect this machine to a network.")
        return Observation(", ".join(hosts))

    def _port(self, port: int, when_busy: Observation) -> Observation:
        from vramancer_cli.serving.listen import close_sockets, open_sockets

        if port == 0:
            return Observation("any free one")
        record = self._running()
        if record is not None and port in (urlsplit(record.api_url).port, record.node_port):
            return Observation(f"{port}, held by the {record.role} that runs here (process {record.pid})")
        try:
            close_sockets(open_sockets(LOOPBACK, port))
        except PortBusyError as error:
            return Observation(str(error), when_busy.state, when_busy.hint or error.hint)
        return Observation(f"{port} is free")

    def _running(self) -> RunRecord | None:
        """A broken run file is the state folder's finding, not the port's."""
        from vramancer_cli.runtime import run_file

        with contextlib.suppress(VramancerError):
            return run_file.running(self.folder)
        return None


def _membership(folder: Path) -> str:
    """Raises StateFolderError for a broken file, TrustError for a certificate that is over."""
    from vramancer_cli.runtime import run_file
    from vramancer_cli.runtime.state_folder import StateFolder

    state = StateFolder(folder)
    authority, credentials = state.authority(), state.credentials()
    if credentials is not None:
        credentials.check(time.time())
    record = run_file.running(folder)
    running = f", running as process {record.pid}" if record else ""
    if authority is not None:
        return f"master of '{authority.name}'{running}"
    return f"node of '{credentials.cluster}'{running}" if credentials else f"of no cluster yet{running}"


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StateFolderUnusableError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _check_creatable(folder: Path) -> None:
    parent = _nearest(folder)
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise StateFolderUnusableError(f"{folder} cannot be made: {parent} cannot be written.")


def _nearest(path: Path) -> Path:
    """The path, or the first folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def mdns() -> Observation:
    """The multicast sockets open; what answers within a second is told. Joining by address works without."""
    from transport.discovery import find

    try:
        peers = asyncio.run(find(LOOK_S))
    except OSError as error:
        words = f"cannot be used here: {error}"
        return Observation(words, "warning", "Name the master's address: vramancer join HOST.")
    seen = ", ".join(f"'{peer.name}' at {peer.addresses[0]}" for peer in peers)
    return Observation(f"works; clusters seen: {seen or 'none'}")


def disk() -> Observation:
    """Room for models from the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    free_bytes = shutil.disk_usage(_nearest(cache)).free
    words = f"{gib(free_bytes)} free for models in {cache}"
    if free_bytes < LITTLE_DISK_BYTES:
        return Observation(words, "warning", "Make room, or name a folder on another disk in HF_HOME.")
    return Observation(words)
