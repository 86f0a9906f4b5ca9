"""`vrm-issue/1` as pure state machines: what is said to whom, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.cluster import make_credentials
from tests.helpers.one_token_book import OneTokenBook
from transport import identity, issuing
from transport.errors import ClockError, IncompatibleError, RemovedError, TransportError, TrustError
from transport.identity import ClusterAuthority, Credentials
from transport.issuing import Issuer, NoBook, OtherClusterError, RenewalApplicant, TokenApplicant, read_greeting
from transport.tokens import Token, TokenError
from transport.types import NodeId

NOW = 1_800_000_000.0
DAY_S = 86400
AUTHORITY = ClusterAuthority.create("home", NOW)
CA_DER = identity.to_der(AUTHORITY.certificate_pem)
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), NOW)
OTHER = ClusterAuthority.create("home", NOW)
KEY = identity.make_key()
SECRET = bytes(range(16))
TOKEN = Token(hashlib.sha256(CA_DER).digest(), SECRET)


def one_token(**changes: Any) -> OneTokenBook:
    return OneTokenBook(SECRET, **changes)


def issuer(book: OneTokenBook | None = None) -> Issuer:
    return Issuer(AUTHORITY, HEAD.certificate_der, book or one_token())


def applied(token: Token = TOKEN, key: bytes = KEY) -> TokenApplicant:
    return TokenApplicant(token, key, read_greeting(issuer().greeting(NOW)))


def redeem(book: OneTokenBook, token: Token = TOKEN, key: bytes = KEY) -> Credentials:
    applicant = applied(token, key)
    return applicant.finish(issuer(book).answer(applicant.request(HEAD.certificate_der), NOW), "laptop")


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_token_gives_a_certificate() -> None:
    book = one_token()
    made = redeem(book)
    made.check(NOW)
    assert (made.name, made.cluster, made.head) == ("laptop", "home", HEAD.node_id)
    assert made.cluster_id == AUTHORITY.cluster_id
    assert book.used_by == [made.node_id] == [identity.node_id_of_key(KEY)]
    assert not identity.is_heads(made.certificate_der)


def test_wrong_and_used_tokens_get_the_same_bytes() -> None:
    book = one_token()
    redeem(book)
    used = issuer(book).answer(applied().request(HEAD.certificate_der), NOW)
    wrong = issuer().answer(applied(Token(TOKEN.authority_digest, bytes(16))).request(HEAD.certificate_der), NOW)
    assert used == wrong == issuing.REFUSAL
    with pytest.raises(TokenError, match="wrong, used or has ended"):
        applied().finish(used, "laptop")


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET + b"x", bytes(10_000)])
def test_a_secret_of_another_length_does_not_reach_the_book(secret: bytes) -> None:
    class Shut(OneTokenBook):
        def redeem(self, secret: bytes, node: NodeId, now: float) -> bool:
            raise AssertionError("it was looked up")

    request = msgspec.msgpack.decode(applied().request(HEAD.certificate_der)) | {"secret": secret}
    assert issuer(Shut(SECRET)).answer(msgspec.msgpack.encode(request), NOW) == issuing.REFUSAL


def test_the_master_of_another_cluster_is_not_shown_the_token() -> None:
    foreign = Issuer(OTHER, OTHER.enrol_head("tower", identity.make_key(), NOW).certificate_der, NoBook())
    with pytest.raises(OtherClusterError, match="not shown"):
        issuing.check_master(read_greeting(foreign.greeting(NOW)), TOKEN, NOW)
    issuing.check_master(read_greeting(issuer().greeting(NOW)), TOKEN, NOW)


@pytest.mark.parametrize("apart_s", [2701, -2701])
def test_clocks_too_far_apart_are_named_before_the_token_is_spent(apart_s: int) -> None:
    with pytest.raises(ClockError, match="more than 45 minutes"):
        issuing.check_master(read_greeting(issuer().greeting(NOW + apart_s)), TOKEN, NOW)


def test_a_mere_node_that_plays_the_master_is_not_shown_the_token() -> None:
    """It has a certificate of the right authority, and may know everything that is public."""
    worker = make_credentials(AUTHORITY, "worker")
    greeting = msgspec.msgpack.decode(issuer().greeting(NOW)) | {"head": worker.node_id}
    applicant = TokenApplicant(TOKEN, KEY, read_greeting(msgspec.msgpack.encode(greeting)))
    with pytest.raises(TrustError, match="not its master"):
        applicant.request(worker.certificate_der)


def test_a_certificate_of_another_authority_is_not_shown_the_token() -> None:
    foreign = OTHER.enrol_head("tower", identity.make_key(), NOW)
    with pytest.raises(TrustError):
        applied().request(foreign.certificate_der)


def test_nothing_is_handed_out_when_the_book_cannot_be_written() -> None:
    with pytest.raises(TransportError, match="disk"):
        redeem(one_token(fails=True))


def test_a_removed_key_is_refused_a_token_like_a_wrong_one() -> None:
    book = one_token(removed={identity.node_id_of_key(KEY)})
    assert issuer(book).answer(applied().request(HEAD.certificate_der), NOW) == issuing.REFUSAL
    assert not book.used_by


def test_a_certificate_for_another_key_is_not_taken() -> None:
    foreign = msgspec.msgpack.decode(
        issuer().answer(applied(key=identity.make_key()).request(HEAD.certificate_der), NOW)
    )
    with pytest.raises(TrustError):
        applied().finish(msgspec.msgpack.encode(foreign), "laptop")


# --- renewal ------------------------------------------------------------------------------------------------


def joined(now: float = NOW) -> Credentials:
    key = identity.make_key()
    certificate = identity.to_pem(AUTHORITY.issue(identity.make_request(key), now))
    return Credentials(
        identity.node_id_of_key(key), "attic", "home", HEAD.node_id, key, certificate, AUTHORITY.certificate_pem
    )


def renewed(own: Credentials, book: OneTokenBook | None = None, now: float = NOW) -> Credentials:
    applicant = RenewalApplicant(own)
    return applicant.finish(issuer(book).answer(applicant.request(), now))


def test_a_certificate_that_has_ended_is_renewed_by_its_own_key() -> None:
    own, now = joined(), NOW + 400 * DAY_S
    assert own.expired(now)
    again = renewed(own, now=now)
    again.check(now)
    assert not again.expired(now)
    assert (again.node_id, again.key_pem, again.name) == (own.node_id, own.key_pem, own.name)


def test_a_removed_node_is_told_so_instead() -> None:
    own = joined()
    with pytest.raises(RemovedError):
        renewed(own, one_token(removed={own.node_id}), NOW + 400 * DAY_S)


def request_of(own: Credentials, **changes: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(RenewalApplicant(own).request()) | changes)


FORGERIES: dict[str, Callable[[Credentials], dict[str, object]]] = {
    "another node's certificate": lambda own: {"cert": joined().certificate_der},
    "another authority's": lambda own: {"cert": OTHER.issue(identity.make_request(own.key_pem), NOW)},
    "the head's": lambda own: {"cert": HEAD.certificate_der, "csr": identity.make_request(HEAD.key_pem)},
    "the authority's own": lambda own: {"cert": CA_DER},
    "no certificate": lambda own: {"cert": b"x" * 500},
    "another key's request": lambda own: {"csr": identity.make_request(identity.make_key())},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_renewal_gets_nothing(forgery: Callable[[Credentials], dict[str, object]]) -> None:
    own = joined()
    answer = issuer().answer(request_of(own, **forgery(own)), NOW)
    assert answer == issuing.REFUSAL
    with pytest.raises(TrustError, match="does not renew"):
        RenewalApplicant(own).finish(answer)


def test_a_renewed_certificate_must_be_ones_own_and_younger() -> None:
    own, older = joined(NOW), joined(NOW).certificate_der
    with pytest.raises(TrustError):
        own.renewed(older)
    with pytest.raises(TrustError, match="ends before"):
        own.renewed(AUTHORITY.issue(identity.make_request(own.key_pem), NOW - DAY_S))


# --- garbage ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
@settings(max_examples=80, deadline=None)
def test_garbage_is_a_named_error_on_both_sides(message: bytes) -> None:
    for read in (lambda: issuer().answer(message, NOW), lambda: applied().finish(message, "x")):
        with pytest.raises(TrustError):
            read()
    with pytest.raises((TrustError, IncompatibleError)):
        read_greeting(message)


def test_another_version_is_named() -> None:
    newer = msgspec.msgpack.decode(issuer().greeting(NOW)) | {"v": 2}
    with pytest.raises(IncompatibleError, match="version 2"):
        read_greeting(msgspec.msgpack.encode(newer))
    with pytest.raises(TrustError, match="version"):
        issuer().answer(request_of(joined(), v=2), NOW)
