from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509

from tests.helpers.api_trust import authority, verifying
from transport.errors import TrustError
from transport.identity import make_key
from vramancer_cli.serving import https
from vramancer_cli.serving.https import PAUSE_S, RENEW_S, ApiCertificate, server_context


def shown(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[x509.Certificate, ssl.SSLObject]:
    """The certificate that a handshake in memory shows to a client that verifies it. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (theirs, ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    der = theirs.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der), theirs


def test_the_certificate_is_for_this_machines_names_and_addresses() -> None:
    ca = authority()
    made = ApiCertificate(ca, ["attic.local", "bad name", "été"], lambda: ["192.168.1.7", "fe80::1%eth0"])
    context = made.context_for("127.0.0.1")
    for name in ("localhost", "127.0.0.1", "::1", "attic.local", "192.168.1.7", "fe80::1"):
        shown(context, verifying(ca), name)
    for name in ("evil.example", "192.168.1.8", "bad name"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shown(context, verifying(ca), name)


def test_another_clusters_authority_is_not_believed() -> None:
    made = ApiCertificate(authority(), [], list)
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(made.context_for("127.0.0.1"), verifying(authority()), "localhost")


def test_it_is_made_anew_when_it_is_old_or_lacks_an_address() -> None:
    ca, now = authority(), time.time()
    moment = [now]
    made = ApiCertificate(ca, [], list, clock=lambda: moment[0])
    first = made.context_for("127.0.0.1")
    assert made.context_for("127.0.0.1") is first
    assert made.context_for("192.168.1.9") is first, "not more often than once a minute"
    moment[0] = now + PAUSE_S + 1
    second = made.context_for("192.168.1.9")
    assert second is not first
    shown(second, verifying(ca), "192.168.1.9")
    assert made.context_for("192.168.1.9") is second
    moment[0] += RENEW_S + 1
    third = made.context_for("192.168.1.9")
    assert third is not second
    moment[0] = now - RENEW_S  # a clock that was put right
    assert made.context_for("192.168.1.9") is not third


def test_tls_1_2_and_newer_with_http_1_1_inside() -> None:
    ca = authority()
    context = ApiCertificate(ca, [], list).context_for("127.0.0.1")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = verifying(ca)
        client.minimum_version = client.maximum_version = version
        client.set_alpn_protocols(["h2", "http/1.1"])
        _, side = shown(context, client, "localhost")
        assert side.selected_alpn_protocol() == "http/1.1"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_key_is_never_on_disk_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real = Path.write_bytes

    def watching(path: Path, data: bytes) -> int:
        written.append(data)
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", watching)
    ApiCertificate(authority(), [], list)
    assert len(written) == 1
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in written[0] and b"BEGIN PRIVATE KEY" not in written[0]


def test_a_key_that_does_not_fit_is_told() -> None:
    ca = authority()
    certificate, _ = ca.issue_api(["localhost"], ["127.0.0.1"], time.time())
    with pytest.raises(TrustError):
        server_context(certificate, make_key())
    assert https.RENEW_S < 30 * 86400
