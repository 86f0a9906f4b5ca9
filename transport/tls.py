"""TLS 1.3 as every link uses it: the cluster's authority and no other, and a node id as the only name.

Contexts are made from `Credentials`; which protocol a connection speaks is its ALPN. Never sockets or torch here.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transport import issuing, pairing
from transport.errors import TrustError
from transport.identity import Credentials, encrypted_key, is_node_id
from transport.types import NodeId

ALPN_CONTROL: Final = "vrm/1"
ALPN_DATA: Final = "vrm-data/1"
ALPN_BULK: Final = "vrm-bulk/1"
ALPN_JOIN: Final = pairing.ALPN
ALPN_ISSUE: Final = issuing.ALPN


@dataclass(frozen=True, slots=True)
class Contexts:
    """A node's side of each kind of connection. `control_server` also takes joining machines, if any may come;
    `data_server` takes all that blocking threads serve.
    """

    control_server: ssl.SSLContext
    data_server: ssl.SSLContext
    control_client: ssl.SSLContext
    data_client: ssl.SSLContext
    bulk_client: ssl.SSLContext
    accepts_pairing: bool


def make_contexts(credentials: Credentials, *, accepts_pairing: bool) -> Contexts:
    """Raises TrustError when key and certificate do not fit."""
    contexts = Contexts(
        control_server=_server([ALPN_CONTROL, *([ALPN_JOIN, ALPN_ISSUE] if accepts_pairing else [])]),
        data_server=_server([ALPN_DATA, ALPN_BULK]),
        control_client=_client([ALPN_CONTROL]),
        data_client=_client([ALPN_DATA]),
        bulk_client=_client([ALPN_BULK]),
        accepts_pairing=accepts_pairing,
    )
    if accepts_pairing:  # a joining machine has no certificate yet; node_of refuses the others that have none
        contexts.control_server.verify_mode = ssl.CERT_OPTIONAL
    servers = (contexts.control_server, contexts.data_server)
    everyone = (*servers, contexts.control_client, contexts.data_client, contexts.bulk_client)
    for context in everyone:
        context.load_verify_locations(cadata=credentials.ca_pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    _load_identity(everyone, credentials)
    return contexts


def joining_context() -> ssl.SSLContext:
    """Verifies nothing, on purpose: vrm-join/1 binds the certificate that was seen to the code."""
    context = _client([ALPN_JOIN])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def issuing_context(ca_pem: bytes | None = None) -> ssl.SSLContext:
    """For vrm-issue/1, without a certificate of one's own. Verifies the master against `ca_pem`; nothing without it."""
    context = _client([ALPN_ISSUE])
    if ca_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def node_of(tls: ssl.SSLSocket | ssl.SSLObject) -> NodeId:
    """The node that the other side's verified certificate names. Raises TrustError when there is none."""
    certificate = tls.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    if len(names) != 1 or names[0][0] != "DNS" or not is_node_id(str(names[0][1])):
        raise TrustError("The other machine showed no certificate of a node.")
    return str(names[0][1])


def leaf_of(tls: ssl.SSLObject) -> bytes:
    """The other side's certificate (DER), verified or not. Raises TrustError when there is none."""
    der = tls.getpeercert(binary_form=True)
    if der is None:
        raise TrustError("The other machine showed no certificate.")
    return der


def _server(protocols: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(protocols)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a data sender never reads, so that tickets would lie in its way
    return context


def _client(protocols: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(protocols)
    return context


def _load_identity(contexts: tuple[ssl.SSLContext, ...], credentials: Credentials) -> None:
    """The ssl module reads keys from files only.

    So the file holds the key under a password that never leaves this function: were the program killed before the
    file is gone, nothing of use would be left lying around.
    """
    password = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="vramancer-") as folder:  # 0700
        chain = Path(folder) / "identity.pem"
        chain.write_bytes(credentials.certificate_pem + encrypted_key(credentials.key_pem, password.encode()))
        try:
            for context in contexts:
                context.load_cert_chain(chain, password=password)
        except ssl.SSLError as error:
            raise TrustError("The node's key and certificate do not belong together.") from error
