"""Hosts with a wire between them; needs root and iproute2, as does the bench."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.table.wire import Host, NoWireError, hosts, inside


def refusal() -> str:
    """Why there is no wire here; empty where there is."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs network namespaces: root, and iproute2"
    try:
        with hosts(1):
            return ""
    except NoWireError as error:
        return f"needs network namespaces: {error}"


@contextmanager
def connection(made: list[Host]) -> Iterator[socket.socket]:
    """From the second host to the first, where what comes is told back by its count of bytes' end."""
    with inside(made[0]):
        server = socket.create_server((made[0].address, 0))

    def answer() -> None:
        caller, _ = server.accept()
        while data := caller.recv(1 << 16):
            if data.endswith(b"."):
                caller.sendall(b"!")
        caller.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with inside(made[1]):
        caller = socket.create_connection((made[0].address, server.getsockname()[1]), 5)
    with server, caller:
        yield caller
    thread.join(5)


def took_s(caller: socket.socket, data: bytes) -> float:
    started = time.monotonic()
    caller.sendall(data)
    assert caller.recv(1) == b"!"
    return time.monotonic() - started


def test_what_crosses_the_wire_takes_at_least_its_delay_and_its_bandwidth():
    if why := refusal():
        pytest.skip(why)
    with hosts(2, delay_s=0.02) as made, connection(made) as caller:
        assert took_s(caller, b".") >= 0.04
    with hosts(2, bits_per_s=20e6) as made, connection(made) as caller:
        assert took_s(caller, bytes(1 << 20) + b".") >= (1 << 20) * 8 / 20e6 * 0.8
    assert not [name for _, name in socket.if_nameindex() if name.startswith("vrm")]
