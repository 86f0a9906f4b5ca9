from __future__ import annotations

import hashlib
import ssl
import time
from pathlib import Path

import pytest

from vramancer_cli.runtime import enrolment
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.serving import cluster_ca


def test_the_authority_is_read_from_what_a_node_keeps(tmp_path: Path) -> None:
    assert cluster_ca.read_pem(tmp_path) is None
    credentials, authority = enrolment.found_cluster("attic", StateFolder(tmp_path), time.time())
    pem = cluster_ca.read_pem(tmp_path)
    assert pem is not None and pem.encode() == authority.certificate_pem
    assert "PRIVATE" not in pem
    digits = cluster_ca.fingerprint(pem).replace(":", "").lower()
    assert digits == credentials.cluster_id == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ca_pem": 3}', '{"ca_pem": "!"}'])
def test_a_broken_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / cluster_ca.CREDENTIALS_FILE).write_text(text, "utf-8")
    with pytest.raises(StateFolderError, match="broken"):
        cluster_ca.read_pem(tmp_path)


def test_a_client_always_verifies(tmp_path: Path) -> None:
    context = cluster_ca.client_context(None)
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
