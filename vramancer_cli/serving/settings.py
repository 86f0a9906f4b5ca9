"""What the server is told at start: its token, its names, its deadlines and bounds. Plain values; reads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`api_token` is a key of role admin; once it is set, a key is asked for on every bind.

    `state_folder` holds the keys (and what keeps signed requests from being sent twice); None: no keys but the token.
    `host_names` are the names and addresses, besides the loopback ones, under which this server may be addressed
    (the address that a connection came in on is always allowed: it cannot be a rebound name).
    `cors_origins`: other sites whose pages may use the API. `allow_lan_http`: keys and texts may cross the network
    in the clear. `production`: no relaxation at all (see exposure.check_exposure).
    `rate_limit`: requests a minute for each key and each address; 0: no limit; None: `default_rate_limit`, and
    none for this machine itself. `wrong_keys_limit`: wrong keys a minute from one address, always.
    `head_read_s` bounds how long a request head may take (and a TLS handshake), `body_read_s` its body, `write_s`
    one write to a client that does not read, `ping_s` the silence in a stream before a comment is sent.
    `revoked_s`: how often running answers are compared with the keys.
    `default_chat_tokens` bounds a chat answer whose request names no limit.
    """

    api_token: str | None = field(default=None, repr=False)
    state_folder: Path | None = None
    host_names: frozenset[str] = frozenset()
    cors_origins: frozenset[str] = frozenset()
    allow_lan_http: bool = False
    production: bool = False
    rate_limit: int | None = None
    default_rate_limit: int = 600
    wrong_keys_limit: int = 10
    body_limit_bytes: int = 4 * MIB
    head_read_s: float = 10.0
    body_read_s: float = 30.0
    write_s: float = 30.0
    keepalive_s: float = 15.0
    ping_s: float = 15.0
    close_s: float = 1.0
    revoked_s: float = 0.5
    max_connections: int = 256
    default_chat_tokens: int = 1024

    @property
    def asks_everybody(self) -> bool:
        """Whether this machine itself needs a key too, on loopback."""
        return bool(self.api_token) or self.production
