"""`make bench-link`: the data link against bare blocking TLS sockets, and what rounding activations is worth.

    python -m bench.link [--rounds N]

Two processes with real nodes: certificates, framing, a device thread at each end. Link and bare sockets take turns, so
that a busy machine harms both alike. As root, chunks of a prompt also cross a pair of network namespaces with a rate
limit (`tc tbf`). Writes results/link.json and results/link.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch

from bench.link_peer import ECHO, ORDER, RESTORE, TAKE, WORD, End, fill, opened
from bench.reports import Measured, Row, table
from transport.contracts import TensorBuffer
from transport.identity import ClusterAuthority
from transport.tls import make_contexts
from transport.types import ActivationFormat, Address, TensorSpec
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.activation_format import format_for

RESULTS: Final = Path(__file__).parent / "results"
LOOPBACK: Final = "127.0.0.1"
SMALL_BYTES: Final = 16 << 10
LARGE_BYTES: Final = 64 << 20
TRIPS: Final = 200
RATES_MBIT: Final = (100, 1000, 2500)
CHUNKS: Final = 8
CHUNK: Final = (256, 2048)
NAMESPACE: Final = "vrm-bench"
FORMS: Final[tuple[ActivationFormat, ...]] = ("plain", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Pair:
    """This process's end, and a way to open bare connections to the other one."""

    end: End
    bare: Callable[[int, int], ssl.SSLSocket]


@asynccontextmanager
async def pair(own_host: str, host: str, prefix: Sequence[str] = ()) -> AsyncIterator[Pair]:
    """`prefix`: what starts the other process elsewhere."""
    authority = ClusterAuthority.create("bench", time.time())
    async with opened(authority, "head", own_host) as (end, endpoint):
        arguments = (host, own_host, str(endpoint.port), end.own.node_id)
        command = [*prefix, sys.executable, "-m", "bench.link_peer", *arguments]
        peer = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert peer.stdin is not None and peer.stdout is not None
        try:
            pem = authority.dump()
            peer.stdin.write(b"%d\n%b" % (len(pem), pem))
            port, node, bare_port = (await peer.stdout.readline()).decode().split()
            for _ in range(2):
                await end.dial(endpoint, Address(host, int(port)), node)
            context = make_contexts(end.own, accepts_pairing=False).data_client

            def bare(what: int, size_bytes: int) -> ssl.SSLSocket:
                sock = socket.create_connection((host, int(bare_port)))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls = context.wrap_socket(sock, server_hostname=node)
                tls.sendall(ORDER.pack(what, size_bytes))
                return tls

            yield Pair(end, bare)
        finally:
            peer.stdin.close()
            await peer.wait()


def hidden(size_bytes: int) -> tuple[TensorBuffer, ...]:
    spec = TensorSpec("hidden_states", "bfloat16", (size_bytes // 4096, 2048), 0)
    return (TensorBuffer(spec, memoryview(bytearray(size_bytes))),)


def trips_s(end: End, stage: int, tensors: Sequence[TensorBuffer], count: int) -> float:
    """The middle one of `count` round trips, each begun on the device thread when the last one has come back there."""
    times: list[float] = []
    done = threading.Event()
    began_s = 0.0

    def begin() -> None:
        nonlocal began_s
        began_s = time.perf_counter()
        end.send(stage, len(times), tensors)

    def arrived(_: object) -> None:
        times.append(time.perf_counter() - began_s)
        begin() if len(times) < count else done.set()

    end.arrived = arrived
    end.device.submit(begin, lambda *_: None)
    assert done.wait(120)
    return median(times)


def bare_trips_s(tls: ssl.SSLSocket, data: memoryview, answer: memoryview, count: int) -> float:
    times: list[float] = []
    for _ in range(count):
        began_s = time.perf_counter()
        tls.sendall(data)
        fill(tls, answer)
        times.append(time.perf_counter() - began_s)
    return median(times)


def round_trips(pair: Pair, rounds: int) -> Row:
    tls, tensors = pair.bare(ECHO, SMALL_BYTES), hidden(SMALL_BYTES)
    answer = memoryview(bytearray(SMALL_BYTES))
    ours, bare = _in_turn(
        rounds,
        lambda: 1e6 * trips_s(pair.end, ECHO, tensors, TRIPS),
        lambda: 1e6 * bare_trips_s(tls, tensors[0].data, answer, TRIPS),
    )
    return _row("round trip of 16 KiB", "us", ours, bare, "<= 1.5 x", lambda ratio: ratio <= 1.5)


def large_frames(pair: Pair, rounds: int) -> Row:
    tls, tensors = pair.bare(TAKE, LARGE_BYTES), hidden(LARGE_BYTES)
    answer = memoryview(bytearray(len(WORD)))
    ours, bare = _in_turn(
        rounds,
        lambda: LARGE_BYTES / 1e6 / trips_s(pair.end, TAKE, tensors, 3),
        lambda: LARGE_BYTES / 1e6 / bare_trips_s(tls, tensors[0].data, answer, 3),
    )
    return _row("64 MiB frames, one connection", "MB/s", ours, bare, ">= 0.9 x", lambda ratio: ratio >= 0.9)


def two_connections(pair: Pair, rounds: int) -> Row:
    """Both of the link's kind: what a second one adds where two cores encrypt and two decrypt."""
    tensors = hidden(LARGE_BYTES)
    two, one = _in_turn(
        rounds,
        lambda: 2 * LARGE_BYTES / 1e6 / _burst_s(pair.end, TAKE, [lambda: tensors] * 2, links=2),
        lambda: LARGE_BYTES / 1e6 / trips_s(pair.end, TAKE, tensors, 2),
    )
    return _row("64 MiB frames, two connections against one", "MB/s", two, one, "> 1 x", lambda ratio: ratio > 1)


def free_interpreter(pair: Pair, rounds: int) -> Row:
    """How far a thread of pure Python counts while the link sends, against how far it counts alone."""
    tensors = hidden(LARGE_BYTES)
    beside, alone = _in_turn(
        rounds,
        lambda: _counted_per_s(lambda: trips_s(pair.end, TAKE, tensors, 2)) / 1e6,
        lambda: _counted_per_s(lambda: time.sleep(0.3)) / 1e6,
    )
    goal = ">= 0.6 x"
    return _row("another thread's counter beside it", "M/s", beside, alone, goal, lambda ratio: ratio >= 0.6)


def _counted_per_s(work: Callable[[], object]) -> float:
    count, stop = 0, False

    def run() -> None:
        nonlocal count
        while not stop:
            count += 1

    thread = threading.Thread(target=run)
    began_s = time.perf_counter()
    thread.start()
    work()
    stop = True
    thread.join()
    return count / (time.perf_counter() - began_s)


def _burst_s(end: End, stage: int, frames: Sequence[Callable[[], Sequence[TensorBuffer]]], links: int = 1) -> float:
    """All at once, each made on the device thread, until word of the last one is back."""
    left, done = len(frames), threading.Event()

    def arrived(_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    end.arrived = arrived
    began_s = time.perf_counter()
    for number, made in enumerate(frames):
        end.device.submit(partial(_send, end, stage, number, made, number % links), lambda *_: None)
    assert done.wait(120)
    return time.perf_counter() - began_s


def _send(end: End, stage: int, number: int, made: Callable[[], Sequence[TensorBuffer]], link: int) -> None:
    end.send(stage, number, made(), link)


# --- prompts over slow links ----------------------------------------------------------------------------------------


def prompt_chunks(pair: Pair, rate: int, rounds: int) -> list[Row]:
    """Chunks of 256 tokens: rounded on one device thread, sent, restored on the other."""
    engine = TorchEngine("cpu", 1 << 30, threads=1)
    boundary = Boundary(torch.randn(CHUNK).bfloat16())

    def cross(form: ActivationFormat) -> float:
        return 1e3 * _burst_s(pair.end, RESTORE, [partial(engine.to_buffers, boundary, form)] * CHUNKS)

    times = dict(zip(FORMS, _in_turn(rounds, *(partial(cross, form) for form in FORMS)), strict=True))
    speed, size = pair.end.senders[0].bytes_per_s, boundary.hidden.nbytes
    chosen = format_for("auto", ("int8",), "bfloat16", size, speed, lambda form: engine.rounding_s(boundary, form))
    told = f"auto: {chosen}, {speed * 8 / 1e6:.0f} Mbit/s measured"
    return [
        _row(f"{CHUNKS} chunks, {rate} Mbit/s, {form} against plain ({told})", "ms", times[form], times["plain"],
             "< 1 x", lambda ratio: ratio < 1)
        for form in FORMS[1:]
    ]  # fmt: skip


@contextmanager
def namespace() -> Iterator[tuple[str, str]]:
    """(this host, the other one) of a veth pair whose far end lies in a network namespace."""
    near, far = "10.231.7.1", "10.231.7.2"
    inside = f"ip netns exec {NAMESPACE}"
    try:
        _run(f"ip netns add {NAMESPACE}")
        _run(f"ip link add vrmb0 type veth peer name vrmb1 netns {NAMESPACE}")
        _run(f"ip addr add {near}/30 dev vrmb0", "ip link set vrmb0 up")
        _run(
            f"{inside} ip addr add {far}/30 dev vrmb1", f"{inside} ip link set vrmb1 up", f"{inside} ip link set lo up"
        )
        yield near, far
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


def _limit(rate: int) -> None:
    shape = f"root tbf rate {rate}mbit burst 256kb latency 50ms"
    _run(f"tc qdisc replace dev vrmb0 {shape}", f"ip netns exec {NAMESPACE} tc qdisc replace dev vrmb1 {shape}")


def _run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, timeout=20)


# --- all of it ------------------------------------------------------------------------------------------------------


def _in_turn(rounds: int, *ways: Callable[[], float]) -> list[Measured]:
    for way in ways:
        way()
    values = [[way() for way in ways] for _ in range(rounds)]
    return [Measured("", tuple(column)) for column in zip(*values, strict=True)]


def _row(name: str, unit: str, ours: Measured, other: Measured, goal: str, good: Callable[[float], bool]) -> Row:
    ratio = ours.middle / other.middle
    return Row(name, Measured(unit, ours.values), Measured(unit, other.values), goal, good(ratio), ratio)


async def measure(rounds: int) -> list[Row]:
    async with pair(LOOPBACK, LOOPBACK) as here:
        rows = [
            await asyncio.to_thread(way, here, rounds)
            for way in (round_trips, large_frames, two_connections, free_interpreter)
        ]
    if os.geteuid() == 0:
        with namespace() as (near, far):
            for rate in RATES_MBIT:
                _limit(rate)
                async with pair(near, far, ("ip", "netns", "exec", NAMESPACE)) as there:
                    rows += await asyncio.to_thread(prompt_chunks, there, rate, rounds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rows = asyncio.run(measure(parser.parse_args().rounds))
    text = table(rows, ("the link", "compared with"))
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    report = {"date": time.strftime("%Y-%m-%d", time.gmtime()), **machine, "rows": [row.to_json() for row in rows]}
    (RESULTS / "link.json").write_text(json.dumps(report, indent=2) + "\n")
    head = f"{report['date']}, {machine['system']}, {machine['cores']} cores, load {machine['load']:.2f}\n\n"
    (RESULTS / "link.md").write_text(head + text)
    print(text)


if __name__ == "__main__":
    main()
