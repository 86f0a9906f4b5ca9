"""Sockets to listen on, and who holds a port that is taken. Blocking; nothing of HTTP."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any, Final, cast

import psutil

from transport.errors import PortBusyError
from vramancer_cli.errors import UsageError

BACKLOG: Final = 128
PROBE_S: Final = 0.25
AIRPLAY_PORTS: Final = frozenset({5000, 7000})


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`, all on one port; port 0 takes a free one.

    An address family that this machine does not have is left out while another remains.
    Raises PortBusyError, UsageError.
    """
    opened: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                opened.append(_listening(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                missing = error
                continue
            port = port or opened[0].getsockname()[1]
        if not opened:
            raise UsageError(
                f"{host} is not an address of this machine.", hint="Name another with --host."
            ) from missing
    except OSError as error:
        close_sockets(opened)
        raise _named(error, host, port) from error
    except (UsageError, PortBusyError):
        close_sockets(opened)
        raise
    return opened


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """IPv4 first, so that a free port is chosen where most clients look."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise UsageError(f"{host} is not an address of this machine.", hint="Name another with --host.") from error
    unique = {(family, address) for family, _, _, _, address in found}
    return sorted(unique, key=lambda entry: (entry[0] != socket.AF_INET, entry[1]))


def _listening(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    if address[1] and _answers(family, address):
        sentence, hint = _busy(address[1])
        raise PortBusyError(sentence, hint=hint)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there, SO_REUSEADDR would let another program take the port away
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _answers(family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    """Whether somebody already listens there. macOS binds beside a listener on the wildcard address (AirPlay)."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        return probe.connect_ex(address) == 0


def _named(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        sentence, hint = _busy(port)
        return PortBusyError(sentence, hint=hint)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return UsageError(f"This user may not listen on port {port}.", hint="Choose one above 1023 with --port.")
    return UsageError(f"Cannot listen on {host}: {error.strerror}.", hint="Name another address with --host.")


def _busy(port: int) -> tuple[str, str]:
    holder = holder_of(port)
    by = f" by {holder}" if holder else ""
    return f"Port {port} is already in use{by}.", "Choose another with --port, or --port 0 for any free one."


def holder_of(port: int) -> str:
    """Who listens on the port, as far as this user may see; empty when that cannot be known."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for connection in connections:
        local = cast("tuple[str, int] | tuple[()]", connection.laddr)
        if connection.status == psutil.CONN_LISTEN and local[1:] == (port,) and connection.pid:
            return _process(connection.pid)
    if sys.platform == "darwin" and port in AIRPLAY_PORTS:
        return "macOS, probably its AirPlay Receiver (System Settings, General, AirDrop & Handoff)"
    return ""


def _process(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"


def close_sockets(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
