"""`vramancer join`: become part of a cluster (once, by its pairing code or a join token) and run a worker here.

Up to the code prompt nothing heavy is loaded. Never imports torch or transport.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from commands import background, join_token, options, terminal
from commands.enter_runtime import cache_folder, enter_runtime
from commands.join_token import Given
from commands.local_node import open_folder, refuse_second
from commands.start import run_node
from vramancer_cli.errors import SHOWN, PairingError, UsageError, VramancerError
from vramancer_cli.settings import NodeSettings, parse_address

if TYPE_CHECKING:
    from vramancer_cli.runtime.enrolment import Token
    from vramancer_cli.runtime.state_folder import StateFolder

EXAMPLES = """[bold]Examples[/]

  vramancer join
  vramancer join --auto-discover --memory 6GiB
  vramancer join 192.168.1.20 --code 4-otter-maple-drum
  vramancer join desk:5001 --detach
  VRM_JOIN_TOKEN=vrm1-… vramancer join desk      in a script

Every setting can come from the environment: --memory is VRM_MEMORY.
A machine that has joined once needs no code: 'vramancer start' is enough."""

T = TypeVar("T")

DISCOVERY_S: Final = 10.0
TRIES: Final = 5
"""As many as the master allows for one code."""
MOST_TRIED: Final = 8
CODE_QUESTION: Final = "Pairing code that its master shows:"


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster to pair with: its master's addresses, and the first digits of its id where mDNS gave them."""

    addresses: tuple[Any, ...]
    cluster_id_prefix: str | None
    title: str


@options.spread
def join(
    invocation: typer.Context,
    *,
    head: Annotated[
        str | None, typer.Argument(metavar="HOST[:PORT]", help="The master's address.", show_default="looked for")
    ] = None,
    auto_discover: Annotated[
        bool, options.option("--auto-discover", "Look for clusters on this network; the same without HOST.")
    ] = False,
    code: options.Code = None,
    token: join_token.TokenText = None,
    token_file: join_token.TokenFile = None,
    detach: options.Detach = False,
    flags: options.NodeFlags,
    runtime: options.RuntimeFlags,
) -> None:
    """Join a cluster and lend it this machine.

    Without HOST it looks for clusters on this network.
    The pairing code is needed once, and shown by the master ('vramancer invite').
    A script uses a join token instead ('vramancer invite --token').
    """
    enter_runtime(runtime)
    if head and auto_discover:
        raise UsageError("HOST and --auto-discover exclude each other.", hint="Leave one of them out.")
    settings = options.node_settings(invocation, flags, role="worker", head=head, cache=cache_folder(runtime))
    folder = open_folder(settings.state_folder)
    refuse_second(folder.path)
    enrol_once(folder, settings, join_token.given(invocation, code, token, token_file))
    if detach:
        background.start_and_tell(folder.path, sys.argv[1:])
    else:
        run_node(settings)


def enrol_once(folder: StateFolder, settings: NodeSettings, given: Given) -> None:
    """Pairs with a master, unless this folder already belongs to a cluster. Raises UsageError, PairingError, ..."""
    if folder.authority() is not None:
        raise UsageError(
            "This machine is itself the master of a cluster.",
            hint="Join from another machine, or name an empty folder with --state-dir.",
        )
    credentials = folder.credentials()
    if credentials is not None:
        if given != Given():
            _say(f"Already a node of '{terminal.plain(credentials.cluster)}': no code is needed.")
    elif given.token is not None:
        cluster = _redeem_at_any(_holders(given.token, settings.head), settings.name, folder, given.token)
        _say(f"Joined '{terminal.plain(cluster)}'.")
    else:
        _pair(folder, settings, given.code)


def _holders(token: Token, head: str | None) -> list[Target]:
    """Where the token's cluster may be: its digest is the cluster's id. Raises UsageError, NothingFoundError."""
    targets = _targets(head)
    digest = token.authority_digest.hex()
    found = [target for target in targets if digest.startswith(target.cluster_id_prefix or "")]
    if not found:
        raise NothingFoundError("The cluster that made the token was not found on this network.")
    return found


def _redeem_at_any(targets: Sequence[Target], name: str, folder: StateFolder, token: Token) -> str:
    """Only the master of the token's own cluster is shown the secret, so that each target may be tried."""
    from vramancer_cli.runtime import enrolment

    *others, last = targets[:MOST_TRIED]
    for target in others:
        try:
            return _run(enrolment.enrol_by_token(target.addresses, token, name, folder)).cluster
        except SHOWN as error:
            terminal.show_error(error)
    _say(f"Joining {last.title}.")
    return _run(enrolment.enrol_by_token(last.addresses, token, name, folder)).cluster


def _pair(folder: StateFolder, settings: NodeSettings, code: str | None) -> None:
    """With a person: one target, and a wrong code is asked for again. Without: `code`, at every master found."""
    if terminal.has_person():
        cluster = _pair_with_person(_choose(_targets(settings.head)), settings.name, folder, code)
    elif code is None:
        raise UsageError("Joining needs a pairing code.", hint="Get one with 'vramancer invite', and pass --code.")
    else:
        cluster = _pair_with_any(_targets(settings.head), settings.name, folder, code)
    _say(f"Joined '{terminal.plain(cluster)}'.")


def _pair_with_person(target: Target, name: str, folder: StateFolder, code: str | None) -> str:
    _say(f"Joining {target.title}.")
    for _ in range(TRIES - 1):
        try:
            return _enrol(target, code or terminal.ask(CODE_QUESTION), name, folder)
        except PairingError as error:
            terminal.show_error(error)
            code = None
    return _enrol(target, terminal.ask(CODE_QUESTION), name, folder)


def _pair_with_any(targets: Sequence[Target], name: str, folder: StateFolder, code: str) -> str:
    """A code opens one cluster only, and a master that does not know it learns nothing of it: so each may be tried."""
    *others, last = targets[:MOST_TRIED]
    for target in others:
        _say(f"Joining {target.title}.")
        try:
            return _enrol(target, code, name, folder)
        except SHOWN as error:
            terminal.show_error(error)
    _say(f"Joining {last.title}.")
    return _enrol(last, code, name, folder)


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio  # here: it is slow to import, and every verb imports this module

    return asyncio.run(work)


def _say(line: str) -> None:
    terminal.notes().print(line, markup=False, soft_wrap=True)


def _enrol(target: Target, code: str, name: str, folder: StateFolder) -> str:
    from vramancer_cli.runtime import enrolment

    credentials = _run(enrolment.enrol(target.addresses, code, name, folder, target.cluster_id_prefix))
    return credentials.cluster


def _targets(head: str | None) -> list[Target]:
    """The one that a person named, else what was found, at least one. Raises UsageError, NothingFoundError."""
    if head:
        address = parse_address(head)
        return [Target((address,), None, str(address))]
    found = _discover()
    if not found:
        raise NothingFoundError
    return found


def _discover() -> list[Target]:
    from vramancer_cli.runtime import enrolment

    with terminal.waiting("looking for clusters on this network…"):
        peers = _run(enrolment.find_clusters(DISCOVERY_S))
    return [
        Target(
            peer.addresses,
            peer.cluster_id_prefix,
            f"'{terminal.plain(peer.name)}' at {peer.addresses[0] if peer.addresses else 'no address'}",
        )
        for peer in peers
    ]


def _choose(found: Sequence[Target]) -> Target:
    if len(found) == 1:
        return found[0]
    return found[terminal.choose("Several clusters are on this network:", [target.title for target in found])]


class NothingFoundError(VramancerError):
    """No cluster was found on this network within 10 s."""

    exit_code = 3
    hint = "Name its master: vramancer join HOST (its address, as 'vramancer nodes' shows it there)."
