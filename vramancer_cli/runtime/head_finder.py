"""Where a worker's head is: where it was last, where the user said, or wherever mDNS says now."""

from __future__ import annotations

from collections.abc import Sequence

from transport import discovery
from transport.types import Address
from vramancer_cli.runtime.state_folder import StateFolder

BROWSE_S = 3.0


class HeadFinder:
    """Guesses only: the handshake decides who it is that answers there."""

    def __init__(self, folder: StateFolder, cluster_id: str, given: Address | None, browse_s: float = BROWSE_S) -> None:
        self._folder = folder
        self._cluster_id = cluster_id
        self._known = (given,) if given is not None else folder.head_addresses()
        self._browse_s = browse_s
        self._tried = False

    async def find(self) -> Sequence[Address]:
        """Best guess first. What is known is tried alone and, every other time, what mDNS says before it."""
        self._tried = not self._tried
        if self._known and self._tried:
            return self._known
        return tuple(dict.fromkeys((*await self._browse(), *self._known)))

    def remember(self, addresses: Sequence[Address]) -> None:
        """The head answered at the first of these."""
        self._tried = False
        if tuple(addresses) != self._known:
            self._known = tuple(addresses)
            self._folder.save_head_addresses(self._known)

    async def _browse(self) -> tuple[Address, ...]:
        peers = await discovery.find(self._browse_s)
        ours = [peer for peer in peers if self._cluster_id.startswith(peer.cluster_id_prefix)]
        return tuple(address for peer in ours for address in peer.addresses)
