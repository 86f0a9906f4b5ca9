"""`vrm-join/1`: how a machine that knows only a spoken code becomes a node of a cluster.

Pure state machines for both sides: message bytes and `now` in, message bytes out. Never sockets, clocks or torch
here. SPAKE2 (RFC 9382's protocol, as the `spake2` package computes it over Ed25519) turns the 24-bit code into a
strong key that someone on the wire can only guess online; the transcript binds that key to the TLS certificate
that the joiner really saw, so that a relay which ends TLS in the middle is refused by both sides.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from spake2.ed25519_basic import NotOnCurve  # pyright: ignore[reportMissingTypeStubs]

from transport.clocks import check_clocks
from transport.contracts import Book, Outcome
from transport.errors import IncompatibleError, PairingError, TrustError
from transport.identity import (
    ClusterAuthority,
    Credentials,
    check_issued,
    cluster_id_of,
    make_request,
    node_id_of_certificate,
    node_id_of_key,
    to_der,
    to_pem,
)
from transport.types import NodeId
from transport.words import make_code, parse_code

ALPN: Final = "vrm-join/1"
VERSION: Final = 1
FRAME_LIMIT_BYTES: Final = 16 * 1024
CODE_VALID_S: Final = 600.0
TRIES: Final = 5
OPEN_CODES: Final = 32
HANDSHAKES: Final = 8
ELEMENT_BYTES: Final = 33
"""One byte for the side, 32 for the point."""
CLUSTER_PREFIX_DIGITS: Final = 16

_LENGTH = struct.Struct(">I")
_REFUSED: Final = "refused"
_SLOTS: Final = 99


# --- messages -----------------------------------------------------------------------------------------------


class _Greeting(msgspec.Struct, frozen=True):
    """`now` is the master's clock, 0 where it does not say: a hint, proven by nothing."""

    v: int
    cid: bytes
    ca: bytes
    now: float = 0.0


class _Request(msgspec.Struct, frozen=True):
    v: int
    slot: int
    pake: bytes
    csr: bytes


class _Answer(msgspec.Struct, frozen=True):
    pake: bytes


class _Confirm(msgspec.Struct, frozen=True):
    confirm: bytes


class _Accepted(msgspec.Struct, frozen=True):
    cert: bytes
    confirm: bytes
    head: NodeId
    cluster: str


class _Refused(msgspec.Struct, frozen=True):
    error: str


REFUSAL: Final = msgspec.msgpack.encode(_Refused(_REFUSED))
"""What the master says to a wrong, used, expired, worn-out or unknown code: always these bytes."""

_M = TypeVar("_M", bound=msgspec.Struct)


def frame(message: bytes) -> bytes:
    """A message with its 4-byte big-endian length in front."""
    return _LENGTH.pack(len(message)) + message


def frame_length(header: bytes) -> int:
    """Bytes that follow these 4. Raises PairingError, before anything is allocated, when over 16 KiB."""
    length = cast(int, _LENGTH.unpack(header)[0])
    if length > FRAME_LIMIT_BYTES:
        raise PairingError("The other side sent more than a message of this protocol can hold.")
    return length


def _decode(message: bytes, kind: type[_M]) -> _M:
    try:
        return msgspec.msgpack.decode(message, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PairingError("The other side sent something that is no pairing message.") from error


# --- keys ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Keys:
    """The transcript T, and a confirmation key for each side."""

    transcript: bytes
    joiner: bytes
    master: bytes

    def joiner_proof(self) -> bytes:
        return hmac.digest(self.joiner, self.transcript, "sha256")

    def master_proof(self, certificate_der: bytes) -> bytes:
        return hmac.digest(self.master, self.transcript + certificate_der, "sha256")


def _derive(shared: bytes, parts: Sequence[bytes]) -> _Keys:
    """`parts`: cid, H(leaf DER), H(CSR DER), pA, pB, H(CA DER). HKDF-SHA256 (RFC 5869), salt H(T)."""
    transcript = b"".join(_LENGTH.pack(len(part)) + part for part in (ALPN.encode(), *parts))
    salt = _digest(transcript)

    def key(side: bytes) -> bytes:
        return HKDF(hashes.SHA256(), 32, salt, ALPN.encode() + b" confirm " + side).derive(shared)

    return _Keys(transcript, key(b"joiner"), key(b"master"))


def _exchange(side: Any, code: str, cid: bytes) -> Any:
    return side(code.encode(), idA=b"vramancer-joiner", idB=b"vramancer-master " + cid)


def _shared_secret(exchange: Any, element: bytes) -> bytes:
    if len(element) != ELEMENT_BYTES:
        raise PairingError("The other side's pairing message has a wrong length.")
    try:
        return cast(bytes, exchange.finish(element))
    except (SPAKEError, NotOnCurve, ValueError) as error:
        raise PairingError("The other side's pairing message is not valid.") from error


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# --- the master's side --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _OpenCode:
    code: str
    expires: float
    tries: int = 0


class PairingDesk:
    """The codes that are open on the master: each lets one machine in, for 10 minutes and 5 tries."""

    def __init__(self) -> None:
        self._open: dict[int, _OpenCode] = {}
        self._last_slot = 0
        self._handshakes = 0

    def invite(self, now: float, rng: random.Random) -> str:
        """A new code. `rng` must be unguessable outside tests (random.SystemRandom).

        Raises PairingError when 32 codes are open.
        """
        self._forget_expired(now)
        if len(self._open) >= OPEN_CODES:
            raise PairingError("Too many pairing codes are open.", hint="Use one of them, or wait ten minutes.")
        self._last_slot = next(slot for slot in self._slots_from(self._last_slot + 1) if slot not in self._open)
        code = make_code(self._last_slot, rng)
        self._open[self._last_slot] = _OpenCode(code, now + CODE_VALID_S)
        return code

    def begin(self, authority: ClusterAuthority, leaf_der: bytes, book: Book | None = None) -> MasterHandshake:
        """A conversation with one joiner over TLS with the certificate `leaf_der`; close it when it ends.

        `book` remembers whom it let in. Raises PairingError when 8 are under way.
        """
        if self._handshakes >= HANDSHAKES:
            raise PairingError("Too many machines are pairing at once.")
        self._handshakes += 1
        return MasterHandshake(self, authority, leaf_der, book)

    def open_codes(self, now: float) -> int:
        self._forget_expired(now)
        return len(self._open)

    def code_at(self, slot: int, now: float) -> str | None:
        self._forget_expired(now)
        found = self._open.get(slot)
        return found.code if found else None

    def tries(self, slot: int) -> int:
        """How often a wrong code was said for this slot."""
        found = self._open.get(slot)
        return found.tries if found else 0

    def accept(self, slot: int, code: str, proven: bool, now: float) -> bool:
        """Spend one try; True once, for the first proof of a code that is still open."""
        self._forget_expired(now)
        found = self._open.get(slot)
        if found is None or found.code != code:
            return False
        found.tries += 1
        if proven or found.tries >= TRIES:
            del self._open[slot]
        return proven

    def ended(self) -> None:
        self._handshakes -= 1

    def _forget_expired(self, now: float) -> None:
        self._open = {slot: open_code for slot, open_code in self._open.items() if now < open_code.expires}

    def _slots_from(self, first: int) -> Sequence[int]:
        """All slots once around, so that a stale code seldom meets a new one's slot."""
        return [(first - 1 + step) % _SLOTS + 1 for step in range(_SLOTS)]


class MasterHandshake:
    """One joiner's conversation, as the master sees it: greeting, request, answer, confirm, remembered, close.

    `answer` is heavy (some 20 ms) and `remembered` writes to the book; neither touches the desk, so that they may run
    on another thread. `outcome`: how it ended, None as long as nobody was let in or refused.
    """

    def __init__(
        self, desk: PairingDesk, authority: ClusterAuthority, leaf_der: bytes, book: Book | None = None
    ) -> None:
        self._desk = desk
        self._authority = authority
        self._leaf_der = leaf_der
        self._book = book
        self.outcome: Outcome | None = None
        self._admitted: NodeId | None = None
        self._ca_der = to_der(authority.certificate_pem)
        self._cid = cluster_id_of(self._ca_der)
        self._request: _Request | None = None
        self._code: str | None = None
        self._keys: _Keys | None = None
        self._closed = False

    def greeting(self, now: float = 0.0) -> bytes:
        return msgspec.msgpack.encode(_Greeting(VERSION, self._cid, self._ca_der, now))

    def request(self, message: bytes, now: float) -> None:
        """Raises PairingError for garbage; an unknown slot is not told from a known one."""
        self._request = _decode(message, _Request)
        if self._request.v != VERSION:
            raise PairingError("The joining machine speaks another version of the pairing protocol.")
        self._code = self._desk.code_at(self._request.slot, now)

    def answer(self) -> bytes:
        """Raises PairingError for an element that is no point of the group."""
        assert self._request is not None, "answer before request"
        exchange = _exchange(SPAKE2_B, self._code or f"no code in slot {self._request.slot}", self._cid)
        mine = cast(bytes, exchange.start())
        shared = _shared_secret(exchange, self._request.pake)
        csr, ca = _digest(self._request.csr), _digest(self._ca_der)
        parts = (self._cid, _digest(self._leaf_der), csr, self._request.pake, mine, ca)
        self._keys = _derive(shared, parts)
        return msgspec.msgpack.encode(_Answer(mine))

    def confirm(self, message: bytes, now: float) -> bytes:
        """The certificate for a right code, else REFUSAL. Raises PairingError for garbage."""
        assert self._request is not None and self._keys is not None, "confirm before answer"
        proven = hmac.compare_digest(_decode(message, _Confirm).confirm, self._keys.joiner_proof())
        refused = self._refusal(now)
        if self._code is None or not self._desk.accept(self._request.slot, self._code, proven, now):
            self.outcome = refused
            return REFUSAL
        try:
            certificate = self._authority.issue(self._request.csr, now)
        except TrustError as error:
            raise PairingError(str(error)) from error
        node = node_id_of_certificate(certificate)
        if self._book is not None and self._book.is_removed(node):
            self.outcome = Outcome("removed", node)
            return REFUSAL  # a machine that comes back makes itself a new key
        self._admitted = node
        head = node_id_of_certificate(self._leaf_der)
        proof = self._keys.master_proof(certificate)
        return msgspec.msgpack.encode(_Accepted(certificate, proof, head, self._authority.name))

    def remembered(self, answer: bytes, now: float) -> bytes:
        """`answer`, once the book knows of the new node. Raises TransportError when it cannot be kept."""
        if self._admitted is not None and self._book is not None and self._request is not None:
            how = f"code in slot {self._request.slot}"
            self._book.admit(self._admitted, how, now)
            self.outcome = Outcome("admitted", self._admitted, how)
        return answer

    def _refusal(self, now: float) -> Outcome:
        """What is noted where the code turns out wrong; before a try is spent on it."""
        slot = self._request.slot if self._request else 0
        if self._code is None or self._desk.code_at(slot, now) != self._code:
            return Outcome("code not open")
        return Outcome("wrong code", "", f"code in slot {slot}", self._desk.tries(slot) + 1)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._desk.ended()


# --- the joiner's side --------------------------------------------------------------------------------------


class JoinerHandshake:
    """The conversation as the joining machine sees it: request, confirm, finish.

    `leaf_der` is the certificate that TLS showed, verified by nobody yet; `expected_prefix` the first 16 hex digits
    of the cluster id where mDNS named it. Every method raises PairingError with a hint for the person who joins.
    """

    def __init__(self, code: str, key_pem: bytes, leaf_der: bytes, expected_prefix: str | None = None) -> None:
        self._slot, self._code = parse_code(code)
        self._key_pem = key_pem
        self._leaf_der = leaf_der
        self._expected_prefix = expected_prefix
        self._csr = make_request(key_pem)
        self._exchange: Any = None
        self._mine = b""
        self._greeting: _Greeting | None = None
        self._keys: _Keys | None = None

    def request(self, message: bytes, now: float = 0.0) -> bytes:
        """Raises IncompatibleError for another version of the protocol, WrongClusterError; ClockError where `now` is
        given, and more than 45 minutes from the master's.
        """
        greeting = _decode(message, _Greeting)
        self._check_greeting(greeting)
        if now:
            check_clocks(greeting.now, now)
        self._greeting = greeting
        self._exchange = _exchange(SPAKE2_A, self._code, greeting.cid)
        self._mine = cast(bytes, self._exchange.start())
        return msgspec.msgpack.encode(_Request(VERSION, self._slot, self._mine, self._csr))

    def confirm(self, message: bytes) -> bytes:
        assert self._greeting is not None, "confirm before request"
        pake = _decode_unless_refused(message, _Answer).pake
        shared = _shared_secret(self._exchange, pake)
        csr, ca = _digest(self._csr), _digest(self._greeting.ca)
        self._keys = _derive(shared, (self._greeting.cid, _digest(self._leaf_der), csr, self._mine, pake, ca))
        return msgspec.msgpack.encode(_Confirm(self._keys.joiner_proof()))

    def finish(self, message: bytes, name: str) -> Credentials:
        """The credentials of this machine, called `name`, once the master has proven that it knows the code too."""
        assert self._greeting is not None and self._keys is not None, "finish before confirm"
        accepted = _decode_unless_refused(message, _Accepted)
        if not hmac.compare_digest(accepted.confirm, self._keys.master_proof(accepted.cert)):
            raise PairingError("The machine that answered does not know the code: it is not the master.")
        node = node_id_of_key(self._key_pem)
        try:
            check_issued(accepted.cert, self._greeting.ca, node)
            check_issued(self._leaf_der, self._greeting.ca, accepted.head)
        except TrustError as error:
            raise PairingError("The master sent certificates that do not fit together.") from error
        ca_pem, certificate_pem = to_pem(self._greeting.ca), to_pem(accepted.cert)
        return Credentials(node, name, accepted.cluster, accepted.head, self._key_pem, certificate_pem, ca_pem)

    def _check_greeting(self, greeting: _Greeting) -> None:
        if greeting.v != VERSION:
            raise IncompatibleError(
                f"The master pairs with version {greeting.v} of the protocol, this program with {VERSION}."
            )
        if greeting.cid != cluster_id_of(greeting.ca):
            raise PairingError("The machine that answered names a cluster that it does not hold.")
        if self._expected_prefix is not None and greeting.cid.hex()[:CLUSTER_PREFIX_DIGITS] != self._expected_prefix:
            raise WrongClusterError


class WrongClusterError(TrustError):
    """The machine that answered is not the cluster that was announced."""

    hint = "Run 'vramancer join --auto-discover' again, or name the master: 'vramancer join HOST'."


def _decode_unless_refused(message: bytes, kind: type[_M]) -> _M:
    try:
        msgspec.msgpack.decode(message, type=_Refused)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode(message, kind)
    raise PairingError(
        "The master did not accept the pairing code: it is wrong, used, or older than ten minutes.",
        hint="Get a fresh code with 'vramancer invite' on the master. If a right code fails again, "
        "another machine may be sitting between the two.",
    )
