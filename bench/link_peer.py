"""The other process of `bench.link`: a node that answers activations, and a bare TLS socket beside it.

    python -m bench.link_peer OWN_HOST HOST PORT NODE      (of the one that measures; the cluster's authority by stdin)

A real activation goes receiving thread, device thread, link, as on a worker; a bare one goes `recv_into`, `sendall`.
Prints its node port, node id and bare port, and ends when stdin does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from transport.contracts import DataSender, Received, TensorBuffer
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import ClusterAuthority, Credentials, make_key, make_request, node_id_of_key, to_pem
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Activation, Hello, Step
from transport.tls import make_contexts
from transport.types import Address, NodeId, Versions
from vramancer_cli.runtime.device_thread import DeviceThread

ECHO: Final = 1
TAKE: Final = 2
RESTORE: Final = 3
"""Stages of an activation: it comes back whole; only word of it does; or word, once its hidden states are restored."""
ORDER: Final = Struct("<QQ")
"""First on a bare connection: ECHO or TAKE, and the bytes of each transfer."""
WORD: Final = b"."
Arrived = Callable[[Received], None]


def credentials(authority: ClusterAuthority, name: str) -> Credentials:
    key = make_key()
    node = node_id_of_key(key)
    certificate = to_pem(authority.issue(make_request(key), time.time()))
    return Credentials(node, name, authority.name, node, key, certificate, authority.certificate_pem)


@dataclass(slots=True)
class End:
    """One process's end: its device thread, and once they are dialled its senders to the other one.

    `arrived` gets, on the device thread, what came over the link.
    """

    own: Credentials
    device: DeviceThread
    arrived: Arrived | None = None
    senders: list[DataSender] = field(default_factory=list[DataSender])

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.device.submit(lambda: received, self._done)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        return

    def _done(self, received: Received, error: BaseException | None) -> None:
        if self.arrived is not None:
            self.arrived(received)

    def send(self, stage: int, number: int, tensors: Sequence[TensorBuffer], link: int = 0) -> None:
        self.senders[link].send(1, number, Activation(stage, Step(1, number, ())), tensors)

    async def dial(self, endpoint: Endpoint, address: Address, node: NodeId) -> None:
        self.senders.append(await endpoint.dial_data([address], node, lambda *_: None))


@asynccontextmanager
async def opened(authority: ClusterAuthority, name: str, host: str) -> AsyncIterator[tuple[End, Endpoint]]:
    own, device = credentials(authority, name), DeviceThread(name)
    end = End(own, device)
    hello = Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, Versions("bench", "", ""), own.node_id, name, "control")
    endpoint = await Endpoint.open(own, hello, host=host, port=0, on_control=_nobody, sink=end)
    try:
        yield end, endpoint
    finally:
        await endpoint.close()
        await asyncio.to_thread(device.close)


async def _nobody(_link: object) -> None:
    return


# --- the bare side --------------------------------------------------------------------------------------------------


def serve_bare(own: Credentials, host: str) -> int:
    """The port of a listener whose connections are each served by a thread."""
    context = make_contexts(own, accepts_pairing=False).data_server
    listener = socket.create_server((host, 0))

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(context, sock), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def _serve(context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError, EOFError), context.wrap_socket(sock, server_side=True) as tls:
        order = bytearray(ORDER.size)
        fill(tls, memoryview(order))
        what, size_bytes = ORDER.unpack(order)
        buffer = memoryview(bytearray(size_bytes))
        while True:
            fill(tls, buffer)
            tls.sendall(buffer if what == ECHO else WORD)


def fill(tls: ssl.SSLSocket, buffer: memoryview) -> None:
    """Raises EOFError."""
    while buffer:
        count = tls.recv_into(buffer)
        if not count:
            raise EOFError
        buffer = buffer[count:]


async def main() -> None:
    from vramancer_cli.engine.torch_engine import TorchEngine

    own_host, host, port, node = sys.argv[1:]
    authority = ClusterAuthority.load(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    engine = TorchEngine("cpu", 1 << 30, threads=1)
    async with opened(authority, "peer", own_host) as (end, endpoint):

        def answer(received: Received) -> None:
            message = received.message
            assert isinstance(message, Activation)
            if message.stage == RESTORE:
                engine.from_buffers(received.tensors)
            end.send(message.stage, received.number, tuple(received.tensors.values()) if message.stage == ECHO else ())

        end.arrived = answer
        await end.dial(endpoint, Address(host, int(port)), node)
        print(endpoint.port, end.own.node_id, serve_bare(end.own, own_host), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
        os._exit(0)  # bare threads hold their sockets


if __name__ == "__main__":
    asyncio.run(main())
