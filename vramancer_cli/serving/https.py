"""The API's own certificate: issued by the cluster's authority, for the names under which this machine is asked.

A leaf apart from the node's: it proves no node, and no link accepts it. Its key never touches the disk in the clear.
"""

from __future__ import annotations

import logging
import re
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from transport.errors import TrustError
from transport.identity import ClusterAuthority, encrypted_key

RENEW_S: Final = 86400.0
"""A certificate older than this is made anew at the next connection: addresses of home machines change."""
PAUSE_S: Final = 60.0
"""How soon after one was made another may be, for an address that it lacks."""
LOG: Final = logging.getLogger(__name__)
_DNS_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
"""What can stand in a certificate; a machine's name may be anything."""


class ApiCertificate:
    """`context_for` gives the TLS context for a connection to one of this machine's addresses.

    `names` are DNS names, `addresses` tells this machine's IPs when it is asked.
    """

    def __init__(
        self,
        authority: ClusterAuthority,
        names: Iterable[str],
        addresses: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._names = tuple(dict.fromkeys(("localhost", *filter(_DNS_NAME.fullmatch, names))))
        self._addresses = addresses
        self._clock = clock
        self._covered: tuple[str, ...] = ()
        self._made_s = clock()
        self._context = self._make(self._made_s)

    def context_for(self, own_address: str) -> ssl.SSLContext:
        """Made anew once a day, and for a new address of this machine; running connections keep theirs."""
        now = self._clock()
        age_s = abs(now - self._made_s)
        if age_s > RENEW_S or (own_address not in self._covered and age_s > PAUSE_S):
            self._made_s = now
            self._context = self._make(now, own_address)
        return self._context

    def _make(self, now: float, own_address: str = "") -> ssl.SSLContext:
        found = ("127.0.0.1", "::1", own_address, *self._addresses())
        self._covered = tuple(dict.fromkeys(ip.partition("%")[0] for ip in found if ip))
        certificate_pem, key_pem = self._authority.issue_api(self._names, self._covered, now)
        LOG.debug("the API's certificate is for %s", ", ".join((*self._names, *self._covered)))
        return server_context(certificate_pem + self._authority.certificate_pem, key_pem)


def server_context(chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """TLS 1.2 and newer: both are unbroken, and some SDKs and proxies in use have no 1.3. Only HTTP/1.1 inside.

    Raises TrustError. The ssl module reads keys from files only, so the file holds it under a password that never
    leaves this function.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    password = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="vramancer-") as folder:  # 0700
        chain = Path(folder) / "api.pem"
        chain.write_bytes(chain_pem + encrypted_key(key_pem, password.encode()))
        try:
            context.load_cert_chain(chain, password=password)
        except ssl.SSLError as error:
            raise TrustError("The API's key and certificate do not belong together.") from error
    return context
