"""What a master's book is told of those who come to its door, over real sockets: who, by what, from where."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.helpers.cluster import TestNode, make_credentials, open_node, until
from tests.helpers.one_token_book import OneTokenBook
from transport import identity
from transport.contracts import Outcome
from transport.errors import PairingError, RemovedError, TransportError, TrustError
from transport.identity import ClusterAuthority
from transport.joining import pair
from transport.pairing import TRIES, PairingDesk
from transport.requesting import redeem, renew
from transport.tokens import Token, TokenError, hash_secret

HERE = "127.0.0.1"
AUTHORITY = ClusterAuthority.create("home", time.time())
OTHER = ClusterAuthority.create("home", time.time())
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())
SECRET = b"sixteen bytes..."
DIGEST = hashlib.sha256(identity.to_der(AUTHORITY.certificate_pem)).digest()
RIGHT, WRONG = Token(DIGEST, SECRET), Token(DIGEST, bytes(16))


@asynccontextmanager
async def master(book: OneTokenBook, desk: PairingDesk | None = None) -> AsyncIterator[TestNode]:
    async with open_node(HEAD, desk=desk or PairingDesk(), authority=AUTHORITY, book=book) as node:
        yield node


async def told(book: OneTokenBook, count: int) -> list[Outcome]:
    """As soon as there are so many, which is after the caller has its answer."""
    await until(lambda: len(book.noted) >= count)
    assert {host for _, host in book.noted} == {HERE}
    return [outcome for outcome, _ in book.noted]


def wrong(code: str) -> str:
    return "-".join((*code.split("-")[:3], "zebra" if not code.endswith("zebra") else "zipper"))


async def test_a_code_let_somebody_in_and_then_it_is_not_open() -> None:
    book, desk, key = OneTokenBook(SECRET), PairingDesk(), identity.make_key()
    async with master(book, desk) as head:
        code = desk.invite(time.time(), random.Random(1))
        await pair(head.addresses, code, name="x", key_pem=key)
        with pytest.raises(PairingError):
            await pair(head.addresses, code, name="y", key_pem=identity.make_key())
        how = f"code in slot {code.split('-')[0]}"
        assert await told(book, 2) == [
            Outcome("admitted", identity.node_id_of_key(key), how),
            Outcome("code not open"),
        ]


async def test_wrong_codes_are_counted_to_the_last_try() -> None:
    book, desk = OneTokenBook(SECRET), PairingDesk()
    async with master(book, desk) as head:
        code = desk.invite(time.time(), random.Random(1))
        for _ in range(TRIES + 1):
            with pytest.raises(PairingError):
                await pair(head.addresses, wrong(code), name="x", key_pem=identity.make_key())
        how = f"code in slot {code.split('-')[0]}"
        assert await told(book, TRIES + 1) == [
            *(Outcome("wrong code", "", how, tries) for tries in range(1, TRIES + 1)),
            Outcome("code not open"),
        ]


async def test_a_token_let_somebody_in_and_others_did_not() -> None:
    book, key = OneTokenBook(SECRET), identity.make_key()
    node = identity.node_id_of_key(key)
    async with master(book) as head:
        await redeem(head.addresses, RIGHT, name="x", key_pem=key)
        for token in (RIGHT, WRONG):
            with pytest.raises(TokenError):
                await redeem(head.addresses, token, name="x", key_pem=key)
        used, guessed = (f"token {hash_secret(token.secret)[:8]}" for token in (RIGHT, WRONG))
        assert await told(book, 3) == [
            Outcome("admitted", node, used), Outcome("wrong token", node, used), Outcome("wrong token", node, guessed),
        ]  # fmt: skip


async def test_a_full_disk_lets_nobody_in_and_says_nothing_else() -> None:
    book, desk = OneTokenBook(SECRET, fails=True), PairingDesk()
    async with master(book, desk) as head:
        code = desk.invite(time.time(), random.Random(1))
        for joining in (
            redeem(head.addresses, RIGHT, name="x", key_pem=identity.make_key()),
            pair(head.addresses, code, name="x", key_pem=identity.make_key()),
        ):
            with pytest.raises(TransportError):
                await joining
        assert not book.noted


async def test_renewals_granted_and_refused() -> None:
    book = OneTokenBook(SECRET)
    own, stranger = make_credentials(AUTHORITY, "own"), make_credentials(OTHER, "stranger")
    own = replace(own, head=HEAD.node_id)
    stranger = replace(stranger, head=HEAD.node_id, ca_pem=AUTHORITY.certificate_pem)
    async with master(book) as head:
        await renew(head.addresses, own)
        with pytest.raises(TrustError):
            await renew(head.addresses, stranger)
        book.removed.add(own.node_id)
        with pytest.raises(RemovedError):
            await renew(head.addresses, own)
        assert await told(book, 3) == [
            Outcome("renewed", own.node_id), Outcome("not renewed", stranger.node_id), Outcome("removed", own.node_id),
        ]  # fmt: skip


async def test_a_removed_key_gets_in_neither_by_code_nor_by_a_data_link() -> None:
    book, desk = OneTokenBook(SECRET), PairingDesk()
    own = make_credentials(AUTHORITY, "own")
    book.removed.add(own.node_id)
    async with master(book, desk) as head, open_node(own) as node:
        code = desk.invite(time.time(), random.Random(1))
        with pytest.raises(PairingError):
            await pair(head.addresses, code, name="own", key_pem=own.key_pem)
        head.endpoint.shut_out(frozenset(book.removed))
        with pytest.raises(TransportError):
            await node.endpoint.dial_data(head.addresses, head.id, lambda *_: None)
        assert await told(book, 2) == [Outcome("removed", own.node_id)] * 2
