"""The API's port takes HTTPS and HTTP: the first byte of a connection decides, then aiohttp's protocol takes over.

0x16 begins a TLS ClientHello (RFC 8446, 5.1), and no HTTP request. Whether plain HTTP may pass is the gate's affair;
here every connection is counted, and each has a deadline until it is handed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from vramancer_cli.serving.https import ApiCertificate
from vramancer_cli.serving.settings import ServerSettings

TLS_FIRST_BYTE: Final = 0x16
TLS_GOODBYE_S: Final = 1.0
LOG: Final = logging.getLogger(__name__)


class Entrance:
    """All doors of one server: connections that have not yet shown what they speak, or still shake hands."""

    def __init__(
        self,
        make_connection: Callable[[], asyncio.Protocol],
        count_inside: Callable[[], int],
        make_room_inside: Callable[[], bool],
        settings: ServerSettings,
        certificate: ApiCertificate | None,
    ) -> None:
        """`make_room_inside`: end a connection that asks for nothing; False where there is none."""
        self.make_connection = make_connection
        self.settings = settings
        self.certificate = certificate
        self._count_inside = count_inside
        self._make_room_inside = make_room_inside
        self._doors: dict[Door, None] = {}
        self._handshakes: set[asyncio.Task[None]] = set()

    def enter(self, door: Door) -> bool:
        """False when there are too many connections already, and all of them want something."""
        is_full = len(self._doors) + self._count_inside() >= self.settings.max_connections
        if is_full and not self._make_room():
            return False
        self._doors[door] = None
        return True

    def _make_room(self) -> bool:
        """The oldest who has said nothing goes, or who is inside and asks for nothing: whoever asks comes in."""
        silent = next((door for door in self._doors if door.is_silent), None)
        if silent is None:
            return self._make_room_inside()
        silent.cut()
        return True

    def leave(self, door: Door) -> None:
        self._doors.pop(door, None)

    def start(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    async def close(self) -> None:
        """Cuts whoever is still at the door."""
        for door in list(self._doors):
            door.cut()
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)


class Door(asyncio.Protocol):
    """One connection until its first byte, and through its TLS handshake."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._entrance.enter(self):
            self._deadline = self._loop.call_later(self._entrance.settings.head_read_s, self.cut)
        else:
            self._transport.abort()

    @property
    def is_silent(self) -> bool:
        """Whether it has not said its first byte."""
        return self._deadline is not None

    def data_received(self, data: bytes) -> None:
        transport, certificate = self._transport, self._entrance.certificate
        if transport is None or transport.is_closing():
            return
        if data[0] == TLS_FIRST_BYTE and certificate is not None:
            self._stop_waiting()
            self._entrance.start(self._loop.create_task(self._shake_hands(transport, data, certificate)))
        else:
            self._hand_over(transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def cut(self) -> None:
        self._gone()
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport, hello: bytes, certificate: ApiCertificate) -> None:
        settings, inside = self._entrance.settings, _Inside()
        context = certificate.context_for(str(transport.get_extra_info("sockname")[0]).partition("%")[0])
        starting = self._loop.create_task(
            self._loop.start_tls(
                transport,
                inside,
                context,
                server_side=True,
                ssl_handshake_timeout=settings.head_read_s,
                ssl_shutdown_timeout=TLS_GOODBYE_S,
            )
        )
        try:
            await asyncio.sleep(
                0
            )  # TLS now owns the transport, but has not read yet: what came before it goes in first
            _feed(transport, hello)
            tls = await starting
        except (OSError, EOFError) as error:
            LOG.debug("a TLS handshake failed: %s", error)
            transport.abort()
            return
        except BaseException:
            starting.cancel()
            transport.abort()
            raise
        finally:
            self._entrance.leave(self)
        if tls is not None and not inside.lost:
            self._hand_over(tls, bytes(inside.early))

    def _hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """From here on the connection's own deadlines hold."""
        self._gone()
        connection = self._entrance.make_connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if data:
            connection.data_received(data)

    def _gone(self) -> None:
        self._stop_waiting()
        self._entrance.leave(self)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Inside(asyncio.Protocol):
    """Keeps what comes out of TLS before aiohttp's protocol is there: a request may come with the last flight."""

    def __init__(self) -> None:
        self.early = bytearray()
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def _feed(transport: asyncio.Transport, data: bytes) -> None:
    """Gives the transport's protocol, which is asyncio's TLS, bytes that were read before it was there."""
    protocol: Any = transport.get_protocol()
    left = memoryview(data)
    while left:
        room = protocol.get_buffer(len(left))
        count = min(len(room), len(left))
        room[:count] = left[:count]
        protocol.buffer_updated(count)
        left = left[count:]
