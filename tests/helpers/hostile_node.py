"""A node that joined properly, and then says what no program of ours would: real certificate, raw bytes.

It has the credentials of a state folder, so that it can also be the second face of a worker that runs out of it.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.helpers.cluster import VERSIONS
from transport.codec import encode
from transport.framing import HEADER_BYTES, FrameHeader
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Activation, Hello, Ping, Step, StepRow
from transport.sockets import DATA_PREAMBLE
from transport.tls import make_contexts
from transport.types import NodeId
from vramancer_cli.runtime.state_folder import StateFolder

WAIT_S = 10.0


class HostileNode:
    """Dials as the node of `folder`. Every socket that it opened is closed at the end of its block."""

    def __init__(self, folder: Path) -> None:
        credentials = StateFolder(folder).credentials()
        assert credentials is not None
        self.node, self.name = credentials.node_id, credentials.name
        self._contexts = make_contexts(credentials, accepts_pairing=False)
        self._open: list[socket.socket] = []

    def data(self, port: int, expected: NodeId) -> ssl.SSLSocket:
        """A data link whose Hellos were said."""
        plain = self._dial(port)
        plain.sendall(DATA_PREAMBLE)
        return self._greeted(self._contexts.data_client.wrap_socket(plain, server_hostname=expected), "data")

    def control(self, port: int, expected: NodeId) -> ssl.SSLSocket:
        """A control link whose Hellos were said; the Join was not."""
        plain = self._dial(port)
        return self._greeted(self._contexts.control_client.wrap_socket(plain, server_hostname=expected), "control")

    def __enter__(self) -> HostileNode:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._open:
            sock.close()

    def _dial(self, port: int) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self._open.append(sock)
        return sock

    def _greeted(self, tls: ssl.SSLSocket, kind: Any) -> ssl.SSLSocket:
        self._open.append(tls)
        tls.sendall(frame(Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSIONS, self.node, self.name, kind)))
        header = FrameHeader.unpack(_exactly(tls, HEADER_BYTES))
        assert header.type == Hello.type_id
        _exactly(tls, header.meta_length)
        return tls


def is_cut(sock: socket.socket, within_s: float = WAIT_S) -> bool:
    """Whether the other side ends the link, whatever it says before."""
    sock.settimeout(within_s)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def frame(message: Any, epoch: int = 0, number: int = 0) -> bytes:
    return encode(epoch, number, message)[0]


def _exactly(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = sock.recv(count - len(got))
        if not more:
            raise ConnectionResetError("the other side hung up")
        got += more
    return got


# --- what it says ---------------------------------------------------------------------------------------------------


def _frame(type_id: int, meta: bytes, payload_length: int, epoch: int, number: int) -> bytes:
    """A frame's beginning with checksums that are right, whatever it says."""
    checksum = zlib.crc32(meta)
    header = (PROTOCOL_MAJOR, PROTOCOL_MINOR, type_id, 0, epoch, number, len(meta), checksum, payload_length)
    return FrameHeader(*header).pack() + meta


def activation(epoch: int, number: int, stage: int, dtype: Any, shape: tuple[int, ...], payload: bytes) -> bytes:
    """With a table that says what it is told to."""
    step = Step(epoch, number, (StepRow(0, 0, 1, (0,), ((0,),), outputs=1),))
    table = msgspec.msgpack.encode([Activation(stage, step), [["hidden_states", dtype, shape, 0]]])
    return _frame(Activation.type_id, table, len(payload), epoch, number) + payload


Says = Callable[[int, int], bytes]
"""Bytes for a data link, of the epoch that is served and the stage that follows this node's."""


def lies() -> dict[str, Says]:
    """By name, each of what the frames of a data link may not be."""
    return {
        "wrong magic": lambda epoch, stage: b"XTP1" + bytes(60),
        "unknown type": lambda epoch, stage: _frame(999, b"", 0, epoch, 0),
        "type of another link": lambda epoch, stage: frame(Ping(1)),
        "shape and length differ": lambda epoch, stage: activation(epoch, 0, stage, "float32", (3, 64), bytes(256)),
        "length of 2^63": lambda epoch, stage: _frame(Activation.type_id, b"", 1 << 63, epoch, 0),
        "dtype 255": lambda epoch, stage: activation(epoch, 0, stage, "255", (1, 64), bytes(256)),
        "a dtype that is a number": lambda epoch, stage: activation(epoch, 0, stage, 255, (1, 64), bytes(256)),
        "a result before a request": lambda epoch, stage: activation(
            epoch, 1 << 20, stage, "float32", (1, 64), bytes(256)
        ),
        "frames of another session": lambda epoch, stage: activation(
            epoch + 7, 0, stage, "float32", (1, 64), bytes(256)
        ),
    }


def in_slices(data: bytes, size: int = 1) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


__all__ = ["HostileNode", "Says", "activation", "frame", "in_slices", "is_cut", "lies"]
