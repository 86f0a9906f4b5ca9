"""Use by pages of other sites: which origins, and what their browsers are told (WHATWG Fetch, 3.2). Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from vramancer_cli.errors import UsageError

METHODS: Final = "GET, HEAD, POST, DELETE"
HEADERS: Final = "Authorization, Content-Type, Idempotency-Key, X-Api-Key, X-API-TOKEN"
REMEMBER_S: Final = 600
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def parse_origins(text: str) -> frozenset[str]:
    """Origins from "https://a.example, http://localhost:3000". Raises UsageError; `*` is none."""
    return frozenset(_origin(part.strip()) for part in text.split(",") if part.strip())


def _origin(text: str) -> str:
    if text == "*":
        raise UsageError(
            "--cors-origin * would let every web page that you open use this API.",
            hint="Name each origin, as https://chat.example.",
        )
    origin = normal(text)
    if origin is None:
        raise UsageError(f"'{text}' is not an origin.", hint="It looks like https://chat.example or http://host:3000.")
    return origin


def normal(text: str) -> str | None:
    """scheme://host[:port] as browsers write it; None for what is no origin, "null" among it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        return None
    if parts.query or parts.fragment or "*" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown_port = "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"


def allowed(origin: str | None, origins: frozenset[str]) -> bool:
    return origin is not None and normal(origin) in origins


def reply_headers(origin: str | None, origins: frozenset[str]) -> dict[str, str]:
    """What every reply carries. Without origins nothing: then no browser lets another site's page read one."""
    if not origins:
        return {}
    told = {"Access-Control-Allow-Origin": origin or "", "Access-Control-Expose-Headers": "Retry-After"}
    return {"Vary": "Origin"} | (told if allowed(origin, origins) else {})


def preflight_headers() -> dict[str, str]:
    """What an allowed origin's browser is told before it asks; that it may ask is all, the key decides later."""
    return {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": HEADERS,
        "Access-Control-Max-Age": str(REMEMBER_S),
    }
