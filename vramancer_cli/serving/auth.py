"""Who may call what: names under which the server may be addressed, origins that may write, the bearer token, roles.

Pure functions of header values. A loopback bind is open to this machine (DNS rebinding and cross-site writes are
what Host and Origin are checked for); any other bind needs a token.
"""

from __future__ import annotations

import hmac
from collections.abc import Set
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from vramancer_cli.errors import UsageError
from vramancer_cli.serving.faults import Fault
from vramancer_cli.serving.settings import ServerSettings

Role = Literal["open", "user", "admin"]
"""`open`: liveness and the page's own files, which tell nothing. The one token of today holds both other roles."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})


def check_bind(host: str, settings: ServerSettings) -> None:
    """Raises UsageError for an address that other machines can reach when there is no token."""
    if not is_loopback(host) and not settings.api_token:
        raise UsageError(
            f"Serving on {host or 'every address'} lets other machines in, so it needs a token.",
            hint="Set VRM_API_TOKEN to a long random string, or leave --host at 127.0.0.1.",
        )


def is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def refusal(
    *,
    method: str,
    host: str | None,
    origin: str | None,
    authorization: str | None,
    own_address: str,
    role: Role | None,
    settings: ServerSettings,
) -> Fault | None:
    """Why this request may not pass, or None. `role` None is a route that nobody gave a role: denied."""
    if not host_allowed(host, settings.host_names | {own_address}):
        return _forbidden("This server does not answer under the name in 'Host'.", "host_not_allowed")
    if method not in SAFE_METHODS and origin is not None and not origin_allowed(origin, host or ""):
        return _forbidden("A page of another site may not write here.", "origin_not_allowed")
    if role is None:
        return _forbidden("Nobody has been given this route.", "no_role")
    if role != "open" and settings.api_token and not token_valid(authorization, settings.api_token):
        return Fault(
            401,
            "This server needs its token: 'Authorization: Bearer <VRM_API_TOKEN>'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return None


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


def token_valid(authorization: str | None, token: str) -> bool:
    scheme, _, sent = (authorization or "").partition(" ")
    same = hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"


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
