"""Reaching another machine: its addresses in order, TLS, and every failure as a sentence that names the address.

Never a listening socket, a message or torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Final, TypeVar

from transport.errors import LinkClosedError, PairingError, RemoteProtocolError, TrustError, UnreachableError
from transport.sockets import connect
from transport.types import Address, NodeId

STREAM_LIMIT_BYTES: Final = 64 * 1024
TLS_GOODBYE_S: Final = 0.5
"""How long a closing stream waits for the other side's close_notify; asyncio's own default is 30 s."""
_NODE_PORT_HINT: Final = "Name its node port (5001 unless it was started with --node-port), not the one of its page."
_CLOSED_HINT: Final = "Perhaps it is shutting down, or out of places for handshakes: try again."

_T = TypeVar("_T")


async def first_that_answers(addresses: Sequence[Address], at: Callable[[Address], Awaitable[_T]]) -> _T:
    """What `at` gives for the first address that is the one looked for.

    Another machine may hold an address that was once right, so doubt about who answers leads to the next one; at
    the end it is the error that counts. PairingError and IncompatibleError come from the right machine: no further.
    """
    failures: list[UnreachableError | TrustError] = []
    for address in addresses:
        try:
            return await at(address)
        except PairingError:
            raise
        except (UnreachableError, TrustError) as error:
            failures.append(error)
    raise next((error for error in failures if isinstance(error, TrustError)), _unreachable(failures))


def _unreachable(failures: Sequence[Exception]) -> UnreachableError:
    if len(failures) == 1 and isinstance(failures[0], UnreachableError):
        return failures[0]
    return UnreachableError(" ".join(map(str, failures)) or "The other machine named no address.")


@contextlib.contextmanager
def explained(address: Address, expected: NodeId | None = None) -> Generator[None]:
    """Turns what a handshake with `address` may raise into UnreachableError or TrustError."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        whom = f"node {expected[:8]}" if expected else "the machine looked for"
        raise TrustError(f"The machine at {address} is not {whom} of this cluster ({error.verify_message}).") from error
    except ssl.SSLError as error:
        raise _of_tls(address, error) from error
    except LinkClosedError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise _of_tls(address, error.__cause__) from error
        raise UnreachableError(f"{address} closed the connection before a word.", hint=_CLOSED_HINT) from error
    except RemoteProtocolError as error:
        raise UnreachableError(f"{address} answered, but then: {error}") from error
    except TimeoutError as error:
        raise UnreachableError(f"{address} answered, but did not finish the handshake in time.") from error
    except (OSError, EOFError) as error:
        raise UnreachableError(f"{address} answered, but closed the connection.", hint=_NODE_PORT_HINT) from error


def _of_tls(address: Address, error: ssl.SSLError) -> UnreachableError | TrustError:
    """An alert about certificates is the other side's distrust; anything else, mostly a port that is not a node's."""
    reason = error.reason or ""
    if "ALERT" in reason and any(word in reason for word in ("CERT", "CA", "ACCESS", "DECRYPT")):
        return TrustError(
            f"The machine at {address} does not accept this node's certificate.",
            hint="Join the cluster again with a fresh code from 'vramancer invite'.",
        )
    if isinstance(error, ssl.SSLEOFError):
        return UnreachableError(f"{address} closed the connection before a word.", hint=_CLOSED_HINT)
    return UnreachableError(f"{address} answered, but not as a node does.", hint=_NODE_PORT_HINT)


async def open_tls(
    address: Address, context: ssl.SSLContext, server_hostname: str, deadline_s: float, connect_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over TLS to one address. Raises UnreachableError, OSError (ssl.SSLError among them)."""
    sock = await connect(address, connect_s)
    return await asyncio.open_connection(
        sock=sock,
        ssl=context,
        server_hostname=server_hostname,
        ssl_handshake_timeout=deadline_s,
        ssl_shutdown_timeout=TLS_GOODBYE_S,
        limit=STREAM_LIMIT_BYTES,
    )
