"""What the server is told at start: its token, its names, its deadlines and bounds. Plain values; reads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`api_token` is asked for on every bind once it is set; a bind that is not loopback refuses to start without one.

    `host_names` are the names and addresses, besides the loopback ones, under which this server may be addressed
    (the address that a connection came in on is always allowed: it cannot be a rebound name).
    `head_read_s` bounds how long a request head may take, `body_read_s` its body, `write_s` one write to a client
    that does not read, `ping_s` the silence in a stream before a comment is sent.
    `default_chat_tokens` bounds a chat answer whose request names no limit.
    """

    api_token: str | None = None
    host_names: frozenset[str] = frozenset()
    body_limit_bytes: int = 4 * MIB
    head_read_s: float = 10.0
    body_read_s: float = 30.0
    write_s: float = 30.0
    keepalive_s: float = 15.0
    ping_s: float = 15.0
    close_s: float = 1.0
    max_connections: int = 256
    default_chat_tokens: int = 1024
