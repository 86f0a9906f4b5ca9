"""Both ends of a data link over real sockets, a sink that keeps what arrives, and a sender that speaks bytes."""

from __future__ import annotations

import mmap
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.helpers.wire_samples import ELM, OAK, hello
from transport.connection import Connection, Role
from transport.contracts import Received, TensorBuffer
from transport.errors import TransportError
from transport.link import TlsDataReceiver, TlsDataSender
from transport.messages import Activation, Step
from transport.types import TensorSpec

SocketPair = Callable[[], tuple[socket.socket, socket.socket]]
WAIT_S = 5.0


def activation(number: int = 0) -> Activation:
    return Activation(1, Step(0, number, ()))


def hidden(data: bytes | bytearray | mmap.mmap, width: int = 1) -> TensorBuffer:
    view = memoryview(data)
    return TensorBuffer(TensorSpec("hidden_states", "int8", (len(view) // width, width), 0), view)


class Sink:
    """Keeps what arrives, in order, and the end."""

    def __init__(self) -> None:
        self.frames: queue.Queue[Received] = queue.Queue()
        self.ends: queue.Queue[tuple[str, TransportError | None]] = queue.Queue()
        self.threads: set[str] = set()

    def on_frame(self, sender: str, received: Received) -> None:
        assert sender == ELM
        self.threads.add(threading.current_thread().name)
        self.frames.put(received)

    def on_closed(self, sender: str, error: TransportError | None) -> None:
        self.threads.add(threading.current_thread().name)
        self.ends.put((sender, error))

    def ended(self) -> TransportError | None:
        """The one end, once it has come."""
        sender, error = self.ends.get(timeout=WAIT_S)
        assert sender in (ELM, OAK)
        time.sleep(0.02)
        assert self.ends.empty(), "told of the end more than once"
        return error


class DataLink:
    """A sender on elm, a receiver on oak."""

    def __init__(self, pair: SocketPair, **receiver_options: Any) -> None:
        self.sink, self.closed = Sink(), Sink()
        out, into = pair()
        self.raw_out, self.raw_into = out, into
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(TlsDataReceiver.start, into, hello(OAK, "oak"), ELM, self.sink, **receiver_options)
            self.sender = TlsDataSender.start(out, hello(ELM, "elm"), OAK, self.closed.on_closed)
            self.receiver = starting.result()

    def close(self) -> None:
        self.sender.finish()
        self.receiver.close()
        assert self.raw_out.fileno() == self.raw_into.fileno() == -1


class RawSender:
    """Speaks bytes to a receiver."""

    def __init__(self, pair: SocketPair) -> None:
        self.sink = Sink()
        self.sock, into = pair()
        self.sock.sendall(Connection(Role.DATA_SENDER, hello(ELM, "elm"), None).greeting())
        self.receiver = TlsDataReceiver.start(into, hello(OAK, "oak"), ELM, self.sink)

    def close(self) -> None:
        self.sock.close()
        self.receiver.close()
