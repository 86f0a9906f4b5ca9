"""An endpoint while trust changes: a certificate is renewed under running links, a node is shut out."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.cluster import TestNode, make_credentials, open_node, until
from tests.helpers.one_token_book import OneTokenBook
from transport import identity, pairing, tls
from transport.errors import LinkClosedError, PairingError, TransportError, TrustError
from transport.identity import ClusterAuthority, Credentials
from transport.joining import pair
from transport.messages import Activation, Ping, Step
from transport.pairing import PairingDesk

DAY_S = 86400
AUTHORITY = ClusterAuthority.create("home", time.time() - 100 * DAY_S)
A, B = make_credentials(AUTHORITY, "a"), make_credentials(AUTHORITY, "b")
OLD_HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time() - 60 * DAY_S)
NEW_HEAD = AUTHORITY.enrol_head("tower", OLD_HEAD.key_pem, time.time())


def ignore(*_: Any) -> None:
    pass


async def leaf_shown_by(node: TestNode, to: Credentials) -> bytes:
    contexts = tls.make_contexts(to, accepts_pairing=False)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", node.endpoint.port, ssl=contexts.control_client, server_hostname=node.id
    )
    leaf = tls.leaf_of(writer.get_extra_info("ssl_object"))
    writer.transport.abort()
    return leaf


# --- renewal ------------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_shown_and_no_link_is_dropped() -> None:
    async with open_node(A) as a, open_node(OLD_HEAD) as head:
        control = await a.endpoint.dial_control(head.addresses, head.id)
        data = await a.endpoint.dial_data(head.addresses, head.id, ignore)
        assert await leaf_shown_by(head, B) == OLD_HEAD.certificate_der
        head.endpoint.renew(NEW_HEAD)
        assert await leaf_shown_by(head, B) == NEW_HEAD.certificate_der
        await control.send(Ping(1))
        assert await control.receive() == Ping(1)
        data.send(1, 0, Activation(0, Step(1, 0, ())), [])
        await until(lambda: head.memory.frames)
        await (await head.endpoint.dial_control(a.addresses, a.id)).close()


async def test_a_new_certificate_is_shown_when_dialling_too() -> None:
    ended = replace(A, certificate_pem=identity.to_pem(_issued(A, time.time() - 200 * DAY_S)))
    async with open_node(ended, may_have_ended=True) as a, open_node(B) as b:
        for dial in (a.endpoint.dial_control(b.addresses, b.id), a.endpoint.dial_data(b.addresses, b.id, ignore)):
            with pytest.raises(TrustError, match="does not accept"):
                await dial
        a.endpoint.renew(A)
        await (await a.endpoint.dial_control(b.addresses, b.id)).close()
        (await a.endpoint.dial_data(b.addresses, b.id, ignore)).close()


def _issued(own: Credentials, now: float) -> bytes:
    return AUTHORITY.issue(identity.make_request(own.key_pem), now)


async def test_a_pairing_binds_the_certificate_that_its_own_tls_has_shown() -> None:
    """Renewed in the middle of one pairing, and before another: both find what they saw."""
    desk = PairingDesk()
    async with open_node(OLD_HEAD, desk=desk, authority=AUTHORITY) as head:
        code = desk.invite(time.time(), random.Random(1))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", head.endpoint.port, ssl=tls.joining_context(), server_hostname=""
        )
        joiner = pairing.JoinerHandshake(code, identity.make_key(), tls.leaf_of(writer.get_extra_info("ssl_object")))
        head.endpoint.renew(NEW_HEAD)

        async def answer(message: bytes | None = None) -> bytes:
            if message is not None:
                writer.write(pairing.frame(message))
            return await reader.readexactly(pairing.frame_length(await reader.readexactly(4)))

        made = joiner.finish(await answer(joiner.confirm(await answer(joiner.request(await answer())))), "laptop")
        assert made.head == OLD_HEAD.node_id
        writer.transport.abort()
        code = desk.invite(time.time(), random.Random(2))
        again = await pair(head.addresses, code, name="attic", key_pem=identity.make_key())
        assert again.head == NEW_HEAD.node_id


# --- removal ------------------------------------------------------------------------------------------------


async def test_shutting_a_node_out_cuts_its_data_links_both_ways_within_a_second() -> None:
    async with open_node(A) as a, open_node(B) as b:
        ended: list[Any] = []
        to_b = await a.endpoint.dial_data(b.addresses, b.id, lambda *end: ended.append(("a->b", *end)))
        from_b = await b.endpoint.dial_data(a.addresses, a.id, lambda *end: ended.append(("b->a", *end)))
        control = await b.endpoint.dial_control(a.addresses, a.id)
        await until(lambda: a.endpoint._reception._receivers)
        a.endpoint.shut_out(frozenset({b.id}))
        await until(lambda: len(ended) == 2 and a.memory.closed and b.memory.closed, 1.5)
        for sender in (to_b, from_b):
            with pytest.raises(LinkClosedError):
                sender.send(1, 0, Activation(0, Step(1, 0, ())), [])
        await control.send(Ping(1))
        assert await control.receive() == Ping(1), "it can still be told"


async def test_one_that_is_shut_out_opens_no_data_link_and_nobody_dials_it() -> None:
    async with open_node(A) as a, open_node(B) as b:
        a.endpoint.shut_out(frozenset({b.id}))
        with pytest.raises(TransportError):
            await b.endpoint.dial_data(a.addresses, a.id, ignore)
        for places in (b.addresses, []):  # without any, only who looks before dialling knows better
            with pytest.raises(TrustError, match="was removed"):
                await a.endpoint.dial_data(places, b.id, ignore)
        assert not a.memory.frames and not b.endpoint._senders


async def test_others_are_not_touched() -> None:
    async with open_node(A) as a, open_node(B) as b:
        sender = await b.endpoint.dial_data(a.addresses, a.id, ignore)
        a.endpoint.shut_out(frozenset({"f" * 32}))
        sender.send(1, 0, Activation(0, Step(1, 0, ())), [])
        await until(lambda: a.memory.frames)


# --- the book -----------------------------------------------------------------------------------------------


async def test_a_pairing_is_written_down_before_the_certificate_leaves() -> None:
    desk, book = PairingDesk(), OneTokenBook(b"")
    async with open_node(NEW_HEAD, desk=desk, authority=AUTHORITY, book=book) as head:
        code = desk.invite(time.time(), random.Random(1))
        made = await pair(head.addresses, code, name="attic", key_pem=identity.make_key())
        assert book.admitted == [(made.node_id, f"code in slot {code.split('-')[0]}")]
        book.fails = True
        code = desk.invite(time.time(), random.Random(2))
        with pytest.raises(PairingError, match="ended the conversation"):
            await pair(head.addresses, code, name="attic", key_pem=identity.make_key())


async def test_a_removed_key_is_not_paired_again() -> None:
    key = identity.make_key()
    desk, book = PairingDesk(), OneTokenBook(b"", removed={identity.node_id_of_key(key)})
    async with open_node(NEW_HEAD, desk=desk, authority=AUTHORITY, book=book) as head:
        with pytest.raises(PairingError, match="did not accept"):
            await pair(head.addresses, desk.invite(time.time(), random.Random(1)), name="attic", key_pem=key)
        assert not book.admitted


# --- being told ---------------------------------------------------------------------------------------------


async def test_a_caller_that_is_not_trusted_hears_it_on_a_control_link() -> None:
    """asyncio alone would drop the alert, and the caller would take it for a broken network."""
    foreign = make_credentials(ClusterAuthority.create("home", time.time()), "stranger")
    contexts = tls.make_contexts(foreign, accepts_pairing=False)
    contexts.control_client.load_verify_locations(cadata=AUTHORITY.certificate_pem.decode())
    async with open_node(B) as b:
        for _ in range(5):  # the answer must never be lost to a reset
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", b.endpoint.port, ssl=contexts.control_client, server_hostname=b.id
            )
            writer.write(b"x" * 5000)
            with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
                await reader.read()
            writer.transport.abort()
