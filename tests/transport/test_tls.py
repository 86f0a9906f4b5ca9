from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest

from transport import identity, tls
from transport.errors import TrustError
from transport.identity import ClusterAuthority

AUTHORITY = ClusterAuthority.create("home", time.time())
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())


def test_no_readable_key_ever_lies_in_a_file_and_the_file_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[Path, bytes] = {}
    write = Path.write_bytes

    def remember(path: Path, data: bytes) -> int:
        written[path] = data
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", remember)
    tls.make_contexts(HEAD, accepts_pairing=False)
    assert written
    for path, data in written.items():
        assert b"ENCRYPTED PRIVATE KEY" in data and b"BEGIN PRIVATE KEY" not in data
        assert not path.parent.exists()


def test_every_context_is_tls_1_3_and_checks_the_other_side() -> None:
    contexts = tls.make_contexts(HEAD, accepts_pairing=False)
    for context in (contexts.control_server, contexts.data_server, contexts.control_client, contexts.data_client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
    assert contexts.control_client.check_hostname and contexts.data_client.check_hostname
    assert contexts.data_server.num_tickets == contexts.control_server.num_tickets == 0


def test_only_the_clusters_authority_is_trusted() -> None:
    contexts = tls.make_contexts(HEAD, accepts_pairing=False)
    assert contexts.control_client.get_ca_certs(binary_form=True) == [identity.to_der(AUTHORITY.certificate_pem)]


def test_a_key_of_another_node_is_a_named_error() -> None:
    with pytest.raises(TrustError):
        tls.make_contexts(replace(HEAD, key_pem=identity.make_key()), accepts_pairing=False)
