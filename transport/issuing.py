"""`vrm-issue/1`: a certificate for a machine that shows a join token, or the old certificate of its own key.

Pure state machines for both sides, bytes and `now` in, bytes out. A protocol of its own beside `vrm-join/1`: there
TLS verifies nothing and the code proves everything; here nothing secret is said before TLS has verified the master.

    M → J  {v, now, head, ca}     on every connection; the first one, unverified, serves to fetch the authority
           J checks SHA-256(ca) against the token, hangs up, and dials again, verifying the master against `ca`
    J → M  {v, secret, csr}       or {v, cert, csr}, from a node whose certificate has ended
    M → J  {cert, cluster}        or {why}

Never sockets, clocks or torch here.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import msgspec

from transport.clocks import check_clocks
from transport.contracts import Book, Outcome
from transport.errors import IncompatibleError, RemovedError, TrustError
from transport.identity import (
    ClusterAuthority,
    Credentials,
    check_issued,
    is_heads,
    make_request,
    node_id_of_certificate,
    node_id_of_key,
    node_id_of_request,
    to_der,
    to_pem,
)
from transport.tokens import SECRET_BYTES, Token, TokenError, hash_secret
from transport.types import NodeId

ALPN: Final = "vrm-issue/1"
VERSION: Final = 1


class NoBook:
    """A master that keeps no book: it knows of no token and of no removal."""

    def is_removed(self, node: NodeId) -> bool:
        return False

    def redeem(self, secret: bytes, node: NodeId, now: float) -> bool:
        return False

    def admit(self, node: NodeId, how: str, now: float) -> None:
        pass

    def note(self, outcome: Outcome, host: str) -> None:
        pass


# --- messages -----------------------------------------------------------------------------------------------


class _Greeting(msgspec.Struct, frozen=True):
    v: int
    now: float
    head: NodeId
    ca: bytes


class _Redeem(msgspec.Struct, frozen=True, tag="redeem"):
    v: int
    secret: bytes
    csr: bytes


class _Renew(msgspec.Struct, frozen=True, tag="renew"):
    v: int
    cert: bytes
    csr: bytes


class _Issued(msgspec.Struct, frozen=True, tag="issued"):
    cert: bytes
    cluster: str


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    why: Literal["refused", "removed"]


REFUSAL: Final = msgspec.msgpack.encode(_Refused("refused"))
"""What the master says to a wrong, used or expired token: always these bytes."""
REMOVED: Final = msgspec.msgpack.encode(_Refused("removed"))

_encode: Final = msgspec.msgpack.encode
_Request = _Redeem | _Renew
_Answer = _Issued | _Refused


def _decode(message: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(message, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError("The other side sent something that is no message of this protocol.") from error


# --- the master's side --------------------------------------------------------------------------------------


class Issuer:
    """One applicant's conversation, as the master sees it: greeting, then one answer. `leaf_der`: what TLS showed.

    `outcome`: how it ended, None as long as nobody was let in or refused.
    """

    def __init__(self, authority: ClusterAuthority, leaf_der: bytes, book: Book) -> None:
        self._authority = authority
        self._ca_der = to_der(authority.certificate_pem)
        self._head = node_id_of_certificate(leaf_der)
        self._book = book
        self.outcome: Outcome | None = None

    def greeting(self, now: float) -> bytes:
        return _encode(_Greeting(VERSION, now, self._head, self._ca_der))

    def answer(self, message: bytes, now: float) -> bytes:
        """The certificate, or a refusal. Writes to the book, so it belongs on a thread.

        Raises TrustError for garbage and for a request that asks for more than its own name; TransportError when
        the book cannot be written.
        """
        request = cast(_Request, _decode(message, _Request))
        if request.v != VERSION:
            raise TrustError("The other machine speaks another version of the issuing protocol.")
        node = node_id_of_request(request.csr)
        if self._book.is_removed(node):
            self.outcome = Outcome("removed", node)
            return REMOVED if isinstance(request, _Renew) else REFUSAL
        may = self._may_renew(request, node) if isinstance(request, _Renew) else self._may_join(request, node, now)
        self.outcome = _outcome(request, node, may)
        if not may:
            return REFUSAL
        return _encode(_Issued(self._authority.issue(request.csr, now), self._authority.name))

    def _may_join(self, request: _Redeem, node: NodeId, now: float) -> bool:
        """Spent before the certificate leaves: a crash between the two costs a token, and never lets two in."""
        return len(request.secret) == SECRET_BYTES and self._book.redeem(request.secret, node, now)

    def _may_renew(self, request: _Renew, node: NodeId) -> bool:
        """Its certificate is one that this authority made for the key that signed the request, whether ended or not.

        A recorded request gains nothing: what comes back is of use to the key's owner only.
        """
        try:
            check_issued(request.cert, self._ca_der, node)
        except TrustError:
            return False
        return not is_heads(request.cert)


def _outcome(request: _Request, node: NodeId, may: bool) -> Outcome:
    if isinstance(request, _Renew):
        return Outcome("renewed" if may else "not renewed", node)
    return Outcome("admitted" if may else "wrong token", node, f"token {hash_secret(request.secret)[:8]}")


# --- the applicant's side -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Master:
    """What a greeting says of the master; `ca_der` is this cluster's, where it was checked against a digest."""

    head: NodeId
    now: float
    ca_der: bytes


def read_greeting(message: bytes) -> Master:
    """Raises TrustError for garbage, IncompatibleError. Nothing in it is proven yet."""
    greeting = cast(_Greeting, _decode(message, _Greeting))
    if greeting.v != VERSION:
        raise IncompatibleError(f"The master issues by version {greeting.v} of the protocol, this program {VERSION}.")
    return Master(greeting.head, greeting.now, greeting.ca)


def check_master(master: Master, token: Token, now: float) -> None:
    """Raises OtherClusterError where the token was made by another cluster, ClockError."""
    if not hmac.compare_digest(hashlib.sha256(master.ca_der).digest(), token.authority_digest):
        raise OtherClusterError
    check_clocks(master.now, now)


class OtherClusterError(TokenError):
    """The join token is of another cluster than the master that answered; it was not shown to it."""

    hint = "Name the machine that made the token: vramancer join HOST."


class TokenApplicant:
    """A machine with a join token, on a connection that TLS has verified against the authority of `master`."""

    def __init__(self, token: Token, key_pem: bytes, master: Master) -> None:
        self._token = token
        self._key_pem = key_pem
        self._master = master

    def request(self, leaf_der: bytes) -> bytes:
        """The secret, for the machine whose certificate TLS verified. Raises TrustError where that is not the master's.

        A mere node of the cluster could collect tokens otherwise: the authority marks the master's certificate only.
        """
        check_issued(leaf_der, self._master.ca_der, self._master.head)
        if not is_heads(leaf_der):
            raise TrustError("The machine that answered is a node of the cluster, but not its master.")
        return _encode(_Redeem(VERSION, self._token.secret, make_request(self._key_pem)))

    def finish(self, message: bytes, name: str) -> Credentials:
        """Raises TokenError where the token was refused, TrustError for a certificate that does not fit."""
        issued = _issued(message, TokenError("The master did not accept the token: it is wrong, used or has ended."))
        node, master = node_id_of_key(self._key_pem), self._master
        check_issued(issued.cert, master.ca_der, node)
        pems = (self._key_pem, to_pem(issued.cert), to_pem(master.ca_der))
        return Credentials(node, name, issued.cluster, master.head, *pems)


class RenewalApplicant:
    """A node whose certificate has ended, on a connection that TLS has verified against its own authority."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def request(self) -> bytes:
        own = self._credentials
        return _encode(_Renew(VERSION, own.certificate_der, make_request(own.key_pem)))

    def finish(self, message: bytes) -> Credentials:
        """Raises RemovedError, TrustError."""
        refusal = TrustError(
            "The master does not renew this node's certificate.",
            hint="Join again with a code from 'vramancer invite'.",
        )
        return self._credentials.renewed(_issued(message, refusal).cert)


def _issued(message: bytes, refusal: TrustError) -> _Issued:
    """Raises `refusal`, or RemovedError where the master says so."""
    answer = cast(_Answer, _decode(message, _Answer))
    if isinstance(answer, _Issued):
        return answer
    raise RemovedError if answer.why == "removed" else refusal
