"""Becoming part of a cluster: looking for one, pairing with its master by code, or founding one.

Runs before anything heavy is loaded, so it must import fast. Never torch, HTTP or the terminal here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from transport import discovery
from transport.endpoint import pair
from transport.identity import ClusterAuthority, Credentials, make_key
from transport.types import Address, Peer
from vramancer_cli.errors import UsageError, VramancerError
from vramancer_cli.runtime.state_folder import StateFolder

SETTLE_S: Final = 1.5
"""Once one cluster was seen, how long to wait for the next: mDNS answers come within a second (RFC 6762, 6)."""

_ADDRESS: Final = re.compile(
    r"""\[(?P<bracketed>[^\s/\[\]]+)\](:(?P<port>[0-9]{1,5}))?
      | (?P<name>[^\s/\[\]:]+)(:(?P<name_port>[0-9]{1,5}))?
      | (?P<bare>[^\s/\[\]:]*:[^\s/\[\]:]*:[^\s/\[\]]*)""",
    re.VERBOSE,
)


async def find_clusters(timeout_s: float, settle_s: float = SETTLE_S) -> tuple[Peer, ...]:
    """Clusters that let machines in: at once empty after `timeout_s`, else as soon as no new one turns up."""
    found: list[Peer] = []
    async with contextlib.aclosing(discovery.browse(timeout_s)) as peers:
        while (peer := await _next_within(peers, settle_s if found else timeout_s)) is not None:
            if peer.accepts_pairing:
                found.append(peer)
    return tuple(found)


async def enrol(
    addresses: Sequence[Address],
    code: str,
    node_name: str,
    state_folder: StateFolder,
    expected_prefix: str | None = None,
) -> Credentials:
    """Pair with the master at one of `addresses`, and keep what it gave and where it is: the next start needs no code.

    Raises PairingError, UnreachableError, IncompatibleError; UsageError on a head's state folder.
    """
    if state_folder.authority() is not None:
        raise UsageError(
            "This machine is itself the master of a cluster.",
            hint="Join from another machine, or name an empty folder with --state-dir.",
        )
    credentials = await pair(addresses, code, name=node_name, key_pem=make_key(), expected_prefix=expected_prefix)
    state_folder.save_credentials(credentials)
    state_folder.save_head_addresses(addresses)
    return credentials


def found_cluster(name: str, state_folder: StateFolder, now: float) -> tuple[Credentials, ClusterAuthority]:
    """The head's credentials and authority: made on the first start, the same ones ever after.

    `name` is the machine's, and the new cluster's. The head's own certificate is renewed here when it is due.
    Raises UsageError on the state folder of another cluster's worker.
    """
    authority, credentials = state_folder.authority(), state_folder.credentials()
    if authority is None:
        _refuse_workers_folder(credentials)
        authority = ClusterAuthority.create(name, now)
        state_folder.save_authority(authority)
    _refuse_other_clusters_folder(authority, credentials)
    if credentials is None or credentials.renewable(now) or credentials.name != name:
        key = credentials.key_pem if credentials else make_key()
        credentials = authority.enrol_head(name, key, now)
        state_folder.save_credentials(credentials)
    return credentials, authority


def _refuse_workers_folder(credentials: Credentials | None) -> None:
    if credentials is not None:
        raise UsageError(
            f"This machine is a node of the cluster '{credentials.cluster}'.",
            hint="Start it with 'vramancer start', or name an empty folder with --state-dir for a new cluster.",
        )


def _refuse_other_clusters_folder(authority: ClusterAuthority, credentials: Credentials | None) -> None:
    if credentials is not None and credentials.cluster_id != authority.cluster_id:
        raise VramancerError(
            f"{credentials.name}'s credentials and the authority in its state folder are of two clusters.",
            hint="Move one of them away, or name an empty folder with --state-dir.",
        )


async def _next_within(peers: AsyncGenerator[Peer, None], timeout_s: float) -> Peer | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(peers, None)
    except TimeoutError:
        return None
