"""Someone in the middle who ends TLS and forwards every byte of both sides."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from transport import identity, tls
from transport.dialling import open_tls
from transport.identity import ClusterAuthority
from transport.types import Address


@asynccontextmanager
async def tls_relay(target: Address) -> AsyncIterator[Address]:
    """Where he listens. His certificate names a cluster of the same name, of his own authority."""
    own = ClusterAuthority.create("home", time.time()).enrol_head("relay", identity.make_key(), time.time())
    context = tls.make_contexts(own, accepts_pairing=True).control_server

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        onward = tls.issuing_context() if spoken == tls.ALPN_ISSUE else tls.joining_context()
        there, back = await open_tls(target, onward, "", 3, 3)
        await asyncio.gather(forward(reader, back), forward(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
