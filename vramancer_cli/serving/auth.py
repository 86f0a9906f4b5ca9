"""Who may call what: names under which the server may be addressed, origins that may write, what a key's role allows.

Pure functions of values. A loopback bind is open to this machine (DNS rebinding and cross-site writes are what Host
and Origin are checked for); on any other bind everybody shows a key.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from vramancer_cli.serving import cors
from vramancer_cli.serving.faults import Fault
from vramancer_cli.serving.settings import ServerSettings

Role = Literal["open", "user", "admin", "metrics"]
"""`open`: liveness and the page's own files, which tell nothing."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
GRANTS: Final[dict[Role, frozenset[Role]]] = {
    "admin": frozenset({"open", "user", "admin", "metrics"}),
    "user": frozenset({"open", "user"}),
    "metrics": frozenset({"open", "metrics"}),
}
"""What a key of each role may call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says before its body is read. `target`: path and query as sent. `peer`, `own_address`: IPs.

    `forwarded`: a proxy says that somebody else asks. `shown_key`: the text after Bearer, or in a key's own header.
    """

    method: str = "GET"
    target: str = "/"
    host: str | None = None
    origin: str | None = None
    upgrade: bool = False
    forwarded: bool = False
    peer: str = ""
    own_address: str = ""
    secure: bool = False
    authorization: str | None = field(default=None, repr=False)
    api_keys: tuple[str, ...] = field(default=(), repr=False)

    @property
    def near(self) -> bool:
        """From this machine, without crossing a network."""
        return is_loopback(self.peer)

    @property
    def shown_key(self) -> str | None:
        scheme, _, sent = (self.authorization or "").partition(" ")
        if scheme.lower() == "bearer" and sent.strip():
            return sent.strip()
        return next((key.strip() for key in self.api_keys if key.strip()), None)


def is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def refusal(asked: Asked, role: Role | None, settings: ServerSettings) -> Fault | None:
    """Why this request may not pass, whoever asks, or None. `role` None is a route that nobody gave a role: denied."""
    if not (asked.secure or asked.near or settings.allow_lan_http):
        return _forbidden(
            "Plain HTTP is for this machine only: ask by https:// at the same port. A key that was sent just now has "
            "crossed the network in the clear.",
            "https_required",
        )
    if not host_allowed(asked.host, settings.host_names | {asked.own_address}):
        return _forbidden("This server does not answer under the name in 'Host'.", "host_not_allowed")
    if (asked.method not in SAFE_METHODS or asked.upgrade) and not may_write(asked, settings):
        return _forbidden("A page of another site may not write here.", "origin_not_allowed")
    if role is None:
        return _forbidden("Nobody has been given this route.", "no_role")
    return None


def may_write(asked: Asked, settings: ServerSettings) -> bool:
    """A caller that is no web page, or a page of this server, of this machine, or of an origin that was let in."""
    if asked.origin is None or cors.allowed(asked.origin, settings.cors_origins):
        return True
    return origin_allowed(asked.origin, asked.host or "")


def host_allowed(header: str | None, own_names: Set[str]) -> bool:
    """Whether a Host header names this machine; the port does not matter, since rebinding is done with names."""
    parts = _split(header or "")
    if parts is None or not parts.hostname:
        return False
    name = parts.hostname.rstrip(".")
    return is_loopback(name) or name in {own.lower().rstrip(".") for own in own_names}


def origin_allowed(origin: str, host: str) -> bool:
    """The same origin as the one asked, or one on this machine. "null" is neither."""
    scheme, separator, rest = origin.partition("://")
    parts = _split(rest)
    if not separator or scheme not in {"http", "https"} or parts is None or not parts.hostname:
        return False
    return is_loopback(parts.hostname) or rest.lower() == host.lower()


def _split(netloc: str) -> SplitResult | None:
    """host[:port] and nothing else, or None."""
    try:
        parts = urlsplit("//" + netloc)
        parts.port  # noqa: B018  # raises ValueError when it is not a number
    except ValueError:
        return None
    return parts if parts.netloc == netloc and "@" not in netloc else None


def _forbidden(message: str, code: str) -> Fault:
    return Fault(403, message, "permission_error", code=code)
