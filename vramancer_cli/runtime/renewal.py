"""A node's certificate over the years: when to ask for a new one, and taking it without dropping a link.

Whose clock is right decides whether a certificate is valid, so the clocks are compared here too. Never torch, HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from transport import requesting
from transport.clocks import check_clocks
from transport.identity import ClusterAuthority, Credentials, make_request
from transport.types import Address
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.telemetry import log

Save = Callable[[Credentials], None]
"""Keeps credentials on disk; called on a thread. Raises StateFolderError."""

Show = Callable[[Credentials], None]
"""Makes the network show the new certificate; called on the event loop."""


class Renewal:
    """Of one node. `credentials` are those in use."""

    def __init__(
        self, credentials: Credentials, save: Save, show: Show, clock: Callable[[], float] = time.time
    ) -> None:
        self.credentials = credentials
        self._save = save
        self._show = show
        self._clock = clock
        self._log = log.get("renewal")

    async def before_dialling(self, addresses: Sequence[Address]) -> None:
        """A certificate that has ended opens no link: get a new one by proving the key.

        Raises RemovedError, ClockError, TrustError, UnreachableError, IncompatibleError.
        """
        if self.credentials.expired(self._clock()):
            await self._use(await requesting.renew(addresses, self.credentials, clock=self._clock))

    def request(self) -> bytes | None:
        """A certificate request for the head, from day 30 of the certificate on; before, None."""
        return make_request(self.credentials.key_pem) if self.credentials.renewable(self._clock()) else None

    async def take(self, certificate_der: bytes) -> None:
        """What the head answered. Raises TrustError unless it is a younger certificate of this node."""
        await self._use(self.credentials.renewed(certificate_der))

    async def sign_when_due(self, authority: ClusterAuthority) -> None:
        """On the head, which asks nobody."""
        own, now = self.credentials, self._clock()
        if own.renewable(now):
            await self._use(authority.enrol_head(own.name, own.key_pem, now))

    def check_clock(self, head_time_s: float) -> None:
        """Raises ClockError, naming both clocks, when they are more than 45 minutes apart."""
        check_clocks(head_time_s, self._clock())

    async def _use(self, credentials: Credentials) -> None:
        """A full disk is no reason to stop: what is not kept is asked for again at the next start."""
        try:
            await asyncio.to_thread(self._save, credentials)
        except StateFolderError as error:
            self._log.warning("the new certificate is not kept", reason=str(error))
        self.credentials = credentials
        self._show(credentials)
        self._log.info("certificate renewed")
