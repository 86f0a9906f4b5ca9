"""The other process of `bench.link`: a node that answers activations, and a bare TLS socket beside it.

    python -m bench.link_peer PORT NODE      (of the one that measures; the cluster's authority comes by stdin)

A real activation goes receiving thread, device thread, sending thread, as on a worker; a bare one goes `recv_into`,
`sendall`. Prints its node port, node id and bare port, and ends when stdin does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from struct import Struct
from typing import Final

from transport.contracts import DataSender, Received, TensorBuffer
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import ClusterAuthority, Credentials, make_key, make_request, node_id_of_key, to_pem
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Activation, Hello, Step
from transport.tls import make_contexts
from transport.types import Address, NodeId, TensorSpec, Versions
from vramancer_cli.runtime.device_thread import DeviceThread

HOST: Final = "127.0.0.1"
ECHO: Final = 1
TAKE: Final = 2
"""Stages of an activation: it comes back whole, or only word of it does."""
ORDER: Final = Struct("<QQ")
"""First on a bare connection: ECHO or TAKE, and the bytes of each transfer."""
WORD: Final = b"."
Arrived = Callable[[Received], None]


def credentials(authority: ClusterAuthority, name: str) -> Credentials:
    key = make_key()
    node = node_id_of_key(key)
    certificate = to_pem(authority.issue(make_request(key), time.time()))
    return Credentials(node, name, authority.name, node, key, certificate, authority.certificate_pem)


def activation(stage: int, number: int, tensors: tuple[TensorBuffer, ...]) -> tuple[int, int, Activation, object]:
    """The arguments of `DataSender.send`."""
    return 1, number, Activation(stage, Step(1, number, ())), tensors


def hidden(data: memoryview) -> TensorBuffer:
    """[tokens, 2048] of bfloat16, as a Llama of 1.1 billion weights sends it."""
    return TensorBuffer(TensorSpec("hidden_states", "bfloat16", (len(data) // 4096, 2048), 0), data)


@dataclass(slots=True)
class End:
    """One process's end: its node, its device thread, and the sender to the other one once it is dialled.

    `arrived` gets, on the device thread, what came over the link.
    """

    endpoint: Endpoint
    own: Credentials
    device: DeviceThread
    arrived: Arrived
    sender: DataSender

    def on_frame(self, _sender: NodeId, received: Received) -> None:
        self.device.submit(lambda: received, self._done)

    def on_closed(self, _sender: NodeId, _error: TransportError | None) -> None:
        return

    def _done(self, received: Received, error: BaseException | None) -> None:
        assert error is None, error
        self.arrived(received)

    async def dial(self, port: int, node: NodeId) -> None:
        self.sender = await self.endpoint.dial_data([Address(HOST, port)], node, lambda *_: None)


@asynccontextmanager
async def opened(authority: ClusterAuthority, name: str) -> AsyncIterator[End]:
    own, device = credentials(authority, name), DeviceThread(name)
    end = End.__new__(End)
    hello = Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, Versions("bench", "", ""), own.node_id, name, "control")
    end.endpoint = await Endpoint.open(own, hello, host=HOST, port=0, on_control=_nobody, sink=end)
    end.own, end.device = own, device
    try:
        yield end
    finally:
        await end.endpoint.close()
        await asyncio.to_thread(device.close)


async def _nobody(_link: object) -> None:
    return


# --- the bare side --------------------------------------------------------------------------------------------------


def serve_bare(own: Credentials) -> int:
    """The port of a listener whose connections are each served by a thread."""
    context = make_contexts(own, accepts_pairing=False).data_server
    listener = socket.create_server((HOST, 0))

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
    authority = ClusterAuthority.load(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    async with opened(authority, "peer") as end:

        def answer(received: Received) -> None:
            message = received.message
            assert isinstance(message, Activation)
            tensors = tuple(received.tensors.values()) if message.stage == ECHO else ()
            end.sender.send(*activation(message.stage, received.number, tensors))

        end.arrived = answer
        await end.dial(int(sys.argv[1]), sys.argv[2])
        print(end.endpoint.port, end.own.node_id, serve_bare(end.own), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
        os._exit(0)  # bare threads hold their sockets


if __name__ == "__main__":
    asyncio.run(main())
