"""How open the API may be: what a start is refused for, and what it is warned of. Nothing of aiohttp here."""

from __future__ import annotations

from typing import Final

from vramancer_cli.errors import UsageError
from vramancer_cli.serving.auth import is_loopback
from vramancer_cli.serving.cors import parse_origins
from vramancer_cli.serving.key_ring import KeyRing
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.settings import NodeSettings
from vramancer_cli.telemetry.security import OpenTo, Speaks

LEAST_TOKEN_LETTERS: Final = 32
LAN_HTTP_COST: Final = (
    "--allow-lan-http: whoever listens on the network can read every key and every text that travels to this API."
)


def server_settings(settings: NodeSettings, host_names: frozenset[str] = frozenset()) -> ServerSettings:
    """The server's part of what a node was told. Raises UsageError for origins that are none."""
    return ServerSettings(
        api_token=settings.api_token,
        state_folder=settings.state_folder,
        host_names=host_names,
        cors_origins=parse_origins(settings.cors_origin or ""),
        allow_lan_http=settings.allow_lan_http,
        production=settings.production,
        rate_limit=settings.rate_limit,
    )


def check_start(settings: NodeSettings) -> list[str]:
    """What a person should be warned of, before anything is loaded. Raises UsageError as `check_exposure`."""
    server, is_head = server_settings(settings), settings.role == "head"
    has_keys = bool(KeyRing(settings.state_folder, settings.api_token).records())
    check_exposure(settings.host, server, has_keys=has_keys, can_https=is_head)
    return [LAN_HTTP_COST] if settings.allow_lan_http and not is_loopback(settings.host) else []


def check_exposure(host: str, settings: ServerSettings, *, has_keys: bool, can_https: bool) -> None:
    """Raises UsageError for an API that would be more open than it was meant to be.

    `has_keys`: the token or a key in the folder. `can_https`: this node can make itself a certificate.
    """
    if settings.production:
        _check_production(settings, has_keys)
    if is_loopback(host):
        return
    where = f"Serving on {host or 'every address'} lets other machines in"
    if not has_keys:
        raise UsageError(
            f"{where}, so it needs a key.",
            hint="Make one with 'vramancer keys add NAME' or set VRM_API_TOKEN, or leave --host at 127.0.0.1.",
        )
    if not (can_https or settings.allow_lan_http):
        raise UsageError(
            f"{where}, and only the master can make a certificate for HTTPS.",
            hint="Ask the master instead, or let keys and texts travel in the clear with --allow-lan-http.",
        )


def exposed(host: str, settings: ServerSettings, *, can_https: bool) -> tuple[Speaks, OpenTo]:
    """How others reach an API that listens on `host`, and who may use it; for the security log."""
    if is_loopback(host):
        return "https and http" if can_https else "http", "keys" if settings.asks_everybody else "this machine"
    if not can_https:
        return "http", "keys"
    return "https and http" if settings.allow_lan_http else "https", "keys"


def _check_production(settings: ServerSettings, has_keys: bool) -> None:
    """Every relaxation by its name. Raises UsageError."""
    plain_origins = sorted(origin for origin in settings.cors_origins if origin.startswith("http://"))
    weak_token = settings.api_token is not None and len(settings.api_token) < LEAST_TOKEN_LETTERS
    refusals = (
        (settings.allow_lan_http, "no plain HTTP for other machines", "Leave --allow-lan-http out."),
        (settings.rate_limit == 0, "a rate limit", "Give --rate-limit a number above 0, or leave it out."),
        (bool(plain_origins), "https origins only", f"Leave {', '.join(plain_origins)} out of --cors-origin."),
        (weak_token, f"at least {LEAST_TOKEN_LETTERS} letters in VRM_API_TOKEN", "Or use 'vramancer keys add NAME'."),
        (not has_keys, "a key, on loopback too", "Make one with 'vramancer keys add NAME --role admin'."),
    )
    for refused, wanted, hint in refusals:
        if refused:
            raise UsageError(f"VRM_PRODUCTION=1 wants {wanted}.", hint=hint)
