"""Hosts of a network on this machine: namespaces, and between them a wire that is as long and as narrow as asked.

    python -m bench.table.wire DELAY_S INTERFACE INTERFACE...

Needs root, `ip` and `tc` (Debian: iproute2). Each host has an interface into a switch, which is this module run as a
program: it passes frames between them, each after the delay. The kernel's own netem would do that, where there is one.
The rate is the kernel's (`tc tbf`), on each host's own interface.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

NETWORK: Final = "10.77.0"
_CLONE_NEWNET: Final = 0x40000000
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_OUTGOING: Final = 4
_ALL_FRAMES: Final = 3
_FRAME_BYTES: Final = 1 << 17
_BURST_BYTES: Final = 64 << 10


class NoWireError(Exception):
    """Namespaces cannot be made here."""


@dataclass(frozen=True, slots=True)
class Host:
    """`namespace`: its name for `ip netns`."""

    namespace: str
    address: str


@contextmanager
def hosts(count: int, delay_s: float = 0.0, bits_per_s: float | None = None) -> Iterator[list[Host]]:
    """So many hosts that reach each other over this wire, each way. Raises NoWireError."""
    made = [Host(f"vrm{os.getpid()}-{number}", f"{NETWORK}.{number + 1}") for number in range(count)]
    outside = [f"vrm{os.getpid() % 100000}o{number}" for number in range(count)]
    try:
        for host, interface in zip(made, outside, strict=True):
            _connect(host, interface, bits_per_s)
        with _switch(delay_s, outside):
            yield made
    finally:
        for host, interface in zip(made, outside, strict=True):
            _ip("link", "delete", interface, check=False)
            _ip("netns", "delete", host.namespace, check=False)


def _connect(host: Host, outside: str, bits_per_s: float | None) -> None:
    inside = ("-n", host.namespace)
    _ip("netns", "add", host.namespace)
    _ip("link", "add", outside, "type", "veth", "peer", "name", "wire", "netns", host.namespace)
    _ip(*inside, "address", "add", f"{host.address}/24", "dev", "wire")
    for interface in ("wire", "lo"):
        _ip(*inside, "link", "set", interface, "up")
    _ip("link", "set", outside, "up")
    if bits_per_s is not None:
        rate = ("rate", f"{bits_per_s:.0f}bit", "burst", str(_BURST_BYTES), "latency", "200ms")
        _run("tc", *inside, "qdisc", "add", "dev", "wire", "root", "tbf", *rate)


@contextmanager
def _switch(delay_s: float, interfaces: Sequence[str]) -> Iterator[None]:
    words = [sys.executable, "-m", "bench.table.wire", str(delay_s), *interfaces]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise NoWireError("The switch did not start.")
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread, and what it starts meanwhile, is on `host`."""
    own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(own)
        os.close(there)
        os.close(own)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise NoWireError(os.strerror(ctypes.get_errno()))


def _ip(*words: str, check: bool = True) -> None:
    _run("ip", *words, check=check)


def _run(*words: str, check: bool = True) -> None:
    if shutil.which(words[0]) is None:
        raise NoWireError(f"{words[0]} is needed: apt-get install iproute2")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise NoWireError(f"{' '.join(words)}: {done.stderr.strip()}")


# --- the switch -------------------------------------------------------------------------------------------------------


async def switch(delay_s: float, interfaces: Sequence[str]) -> None:
    """Every frame of one interface to all others, after the delay; they take what is theirs."""
    loop = asyncio.get_running_loop()
    ports = [_port(interface) for interface in interfaces]
    for port in ports:
        others = [other for other in ports if other is not port]
        loop.add_reader(port, _pass, loop, port, others, delay_s)
    print("ready", flush=True)
    await asyncio.Event().wait()


def _port(interface: str) -> socket.socket:
    """With a header that says which checksum and cutting the kernel has left for later: it is passed on as it is."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.bind((interface, _ALL_FRAMES))
    port.setblocking(False)
    return port


def _pass(
    loop: asyncio.AbstractEventLoop, port: socket.socket, others: Sequence[socket.socket], delay_s: float
) -> None:
    frame, sender = port.recvfrom(_FRAME_BYTES)
    if sender[2] == _PACKET_OUTGOING:  # what the switch itself has sent
        return
    if delay_s:
        loop.call_later(delay_s, _send, others, frame)
    else:
        _send(others, frame)


def _send(others: Sequence[socket.socket], frame: bytes) -> None:
    for other in others:
        try:
            other.send(frame)
        except OSError:  # a full queue loses frames, as a switch does
            continue


if __name__ == "__main__":
    asyncio.run(switch(float(sys.argv[1]), sys.argv[2:]))
