"""What the tests of the API's trust share: certificates of a real authority, clients that verify, signed headers."""

from __future__ import annotations

import secrets
import ssl
import time
from pathlib import Path

from transport.identity import ClusterAuthority
from vramancer_cli.serving import keys, signing
from vramancer_cli.serving.cluster_ca import client_context
from vramancer_cli.serving.https import ApiCertificate
from vramancer_cli.serving.keys import KeyRecord, KeyRole
from vramancer_cli.serving.settings import ServerSettings

FAR = "192.0.2.7"
"""An address of another machine (RFC 5737)."""


def authority(name: str = "attic") -> ClusterAuthority:
    return ClusterAuthority.create(name, time.time())


def certificate_of(ca: ClusterAuthority) -> ApiCertificate:
    return ApiCertificate(ca, ["attic.local"], lambda: ["192.168.1.7"])


def verifying(ca: ClusterAuthority) -> ssl.SSLContext:
    return client_context(ca.certificate_pem.decode())


def keyed(folder: Path, **more: object) -> tuple[ServerSettings, dict[str, str]]:
    """Settings over a folder with one key of each role, and the keys by role."""
    roles: tuple[KeyRole, ...] = ("admin", "user", "metrics")
    made = {role: keys.add(folder, role, role, time.time()) for role in roles}
    return ServerSettings(state_folder=folder, close_s=0.2, **more), dict(made)  # type: ignore[arg-type]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def signed(
    key: str,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    time_s: int | None = None,
    nonce: str | None = None,
) -> dict[str, str]:
    record = KeyRecord.of(key, "", "user", 0.0)
    return {
        "Authorization": signing.sign(
            key_id=record.id,
            secret=record.signing,
            method=method,
            target=target,
            body=body,
            time_s=int(time.time()) if time_s is None else time_s,
            nonce=nonce or secrets.token_urlsafe(16),
        )
    }
