"""Becoming part of a cluster: looking for one, pairing with its master by code, or founding one.

Runs before anything heavy is loaded, so it must import fast. Never torch, HTTP or the terminal here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Final

from transport import discovery
from transport.errors import RemovedError
from transport.identity import ClusterAuthority, Credentials, is_heads, make_key
from transport.joining import pair
from transport.requesting import redeem
from transport.tokens import Token as Token
from transport.tokens import parse_token as parse_token
from transport.types import Address, Peer
from vramancer_cli.errors import UsageError, VramancerError
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.trust_records import OwnRemoval

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

    Each time with a new key, so that a removed machine comes back as another node. Raises PairingError,
    UnreachableError, IncompatibleError, ClockError; UsageError on a head's state folder.
    """
    _refuse_heads_folder(state_folder)
    credentials = await pair(addresses, code, name=node_name, key_pem=make_key(), expected_prefix=expected_prefix)
    return _keep(credentials, addresses, state_folder)


async def enrol_by_token(
    addresses: Sequence[Address], token: Token, node_name: str, state_folder: StateFolder
) -> Credentials:
    """As `enrol`, with a join token. Raises also TokenError, and OtherClusterError where it was not shown."""
    _refuse_heads_folder(state_folder)
    return _keep(await redeem(addresses, token, name=node_name, key_pem=make_key()), addresses, state_folder)


def refuse_removed(state_folder: StateFolder) -> None:
    """Raises RemovedError in the folder of a node that was removed, and has not joined again."""
    removal = state_folder.own_removal()
    if removal is not None:
        raise _removed(removal.cluster)


@contextlib.contextmanager
def forgetting_when_removed(state_folder: StateFolder, cluster: str) -> Generator[None]:
    """The key of a node that was removed is of no use any more: it goes, and the next start says why."""
    try:
        yield
    except RemovedError as error:
        state_folder.forget_membership(OwnRemoval(cluster, time.time()))
        raise _removed(cluster) from error


def _removed(cluster: str) -> RemovedError:
    return RemovedError(f"This machine was removed from the cluster '{cluster}'.")


def _refuse_heads_folder(state_folder: StateFolder) -> None:
    if state_folder.authority() is not None:
        raise UsageError(
            "This machine is itself the master of a cluster.",
            hint="Join from another machine, or name an empty folder with --state-dir.",
        )


def _keep(credentials: Credentials, addresses: Sequence[Address], state_folder: StateFolder) -> Credentials:
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
    if credentials is None or _to_be_signed(credentials, name, now):
        key = credentials.key_pem if credentials else make_key()
        credentials = authority.enrol_head(name, key, now)
        state_folder.save_credentials(credentials)
    return credentials, authority


def _to_be_signed(credentials: Credentials, name: str, now: float) -> bool:
    """Also one from before the head's certificate carried its mark."""
    return credentials.renewable(now) or credentials.name != name or not is_heads(credentials.certificate_der)


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
