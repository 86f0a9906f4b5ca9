"""A node's certificate over the years, against a real head on loopback."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster import open_node
from transport import identity
from transport.errors import ClockError, RemovedError, TrustError, UnreachableError
from transport.identity import ClusterAuthority, Credentials
from transport.pairing import PairingDesk
from transport.types import Address
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.renewal import Renewal
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.whole_file import StateFolderError

DAY_S = 86400
THEN = time.time() - 250 * DAY_S
AUTHORITY = ClusterAuthority.create("home", THEN)
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())


def worker(made_s: float) -> Credentials:
    key = identity.make_key()
    certificate = identity.to_pem(AUTHORITY.issue(identity.make_request(key), made_s))
    node = identity.node_id_of_key(key)
    return Credentials(node, "attic", "home", HEAD.node_id, key, certificate, AUTHORITY.certificate_pem)


class Kept:
    """What was saved and shown, in order."""

    def __init__(self, own: Credentials, *, days_later: float = 0, full: bool = False) -> None:
        self.saved: list[Credentials] = []
        self.shown: list[Credentials] = []
        self.full = full
        self.renewal = Renewal(own, self.save, self.shown.append, lambda: time.time() + days_later * DAY_S)

    def save(self, credentials: Credentials) -> None:
        if self.full:
            raise StateFolderError("No space left on device.")
        self.saved.append(credentials)


@pytest.mark.parametrize(("age_days", "asks"), [(0, False), (29.9, False), (30.1, True), (179, True), (200, True)])
def test_it_asks_from_day_30_on(age_days: float, asks: bool) -> None:
    request = Kept(worker(time.time() - age_days * DAY_S)).renewal.request()
    assert (request is not None) is asks


async def test_what_the_head_answers_is_kept_and_shown() -> None:
    own = worker(time.time() - 40 * DAY_S)
    kept = Kept(own)
    request = kept.renewal.request()
    assert request is not None
    await kept.renewal.take(Registrar(authority=AUTHORITY).renew(own.node_id, request))
    [saved] = kept.saved
    assert kept.shown == [saved] == [kept.renewal.credentials]
    assert saved == replace(own, certificate_pem=saved.certificate_pem) != own
    saved.check(time.time() + 179 * DAY_S)
    assert kept.renewal.request() is None


async def test_another_nodes_certificate_is_not_taken() -> None:
    kept = Kept(worker(time.time() - 40 * DAY_S))
    with pytest.raises(TrustError):
        await kept.renewal.take(worker(time.time()).certificate_der)
    assert not kept.saved and not kept.shown


async def test_a_full_disk_does_not_keep_it_from_being_shown() -> None:
    own = worker(time.time() - 40 * DAY_S)
    kept = Kept(own, full=True)
    await kept.renewal.take(AUTHORITY.issue(identity.make_request(own.key_pem), time.time()))
    assert kept.shown and not kept.saved


async def test_one_that_has_ended_is_renewed_before_the_head_is_dialled(tmp_path: Path) -> None:
    own = worker(THEN)
    kept = Kept(own)
    registrar = Registrar(StateFolder(tmp_path), AUTHORITY)
    async with open_node(HEAD, desk=PairingDesk(), authority=AUTHORITY, book=registrar) as head:
        async with open_node(own, may_have_ended=True) as node:
            kept.renewal = Renewal(own, kept.save, node.endpoint.renew)
            await kept.renewal.before_dialling(head.addresses)
            assert (await node.endpoint.dial_control(head.addresses, HEAD.node_id)).hello.node == HEAD.node_id
        assert kept.saved[0].node_id == own.node_id
        await kept.renewal.before_dialling(head.addresses)
        assert len(kept.saved) == 1, "one that is good is left alone"
        registrar.remove(own.node_id)
        with pytest.raises(RemovedError):
            await Kept(own).renewal.before_dialling(head.addresses)


async def test_while_the_head_is_away_it_is_merely_unreachable() -> None:
    with pytest.raises(UnreachableError):
        await Kept(worker(THEN)).renewal.before_dialling([Address("127.0.0.1", 1)])


async def test_the_head_signs_its_own_when_it_is_due() -> None:
    kept = Kept(HEAD, days_later=29)
    await kept.renewal.sign_when_due(AUTHORITY)
    assert not kept.saved
    kept = Kept(HEAD, days_later=31)
    await kept.renewal.sign_when_due(AUTHORITY)
    [signed] = kept.saved
    assert signed.node_id == HEAD.node_id and kept.shown == [signed]
    assert identity.is_heads(signed.certificate_der)
    signed.check(time.time() + 200 * DAY_S)


def test_clocks_are_compared() -> None:
    renewal = Kept(worker(time.time())).renewal
    renewal.check_clock(time.time() - 44 * 60)
    with pytest.raises(ClockError, match="more than 45 minutes"):
        renewal.check_clock(time.time() - 46 * 60)
