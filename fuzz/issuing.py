"""`vrm-issue/1` under attack: tokens and renewals, with the book that the head really keeps (in memory here)."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

from fuzz.certificate_requests import hostile_request, is_honest, pool, spoiled_der
from fuzz.findings import require
from fuzz.joining import NOW, check_certificate, same, spoiled
from fuzz.mutation import spoil
from transport import identity, issuing
from transport.errors import IncompatibleError, TrustError
from transport.identity import ClusterAuthority
from transport.issuing import REFUSAL, REMOVED, Issuer, RenewalApplicant, TokenApplicant, check_master, read_greeting
from transport.tokens import TokenError, parse_token
from vramancer_cli.runtime.registrar import Registrar

FATES: Final = ("right", "wrong", "expired", "used", "removed")
YEAR_S: Final = 365 * 86400.0


class World:
    """A cluster with a book, a node of it, the head, and a node of another cluster."""

    def __init__(self, _: random.Random) -> None:
        self.authority = ClusterAuthority.create("home", NOW)
        self.head = self.authority.enrol_head("tower", identity.make_key(), NOW)
        self.ca_der = identity.to_der(self.authority.certificate_pem)
        self.key = identity.make_key()
        self.node = identity.node_id_of_key(self.key)
        self.csr = identity.make_request(self.key)
        self.certificate = self.authority.issue(self.csr, NOW)
        self.stranger = ClusterAuthority.create("home", NOW).enrol_head("else", identity.make_key(), NOW)
        pool()

    def book(self) -> Registrar:
        return Registrar(None, self.authority, lambda: NOW)

    def issuer(self, book: Registrar) -> Issuer:
        return Issuer(self.authority, self.head.certificate_der, book)


def redeem(world: World, rng: random.Random) -> str:
    """Requests with a token, spoiled or not, whose token or node met some fate: one answer for every wrong one."""
    book, fate = world.book(), rng.choice(FATES)
    secret = parse_token(book.invite(reusable=rng.random() < 0.3, hours=1)[0]).secret
    now = _meet(book, fate, secret, world, rng)
    csr = world.csr if rng.random() < 0.5 else hostile_request(rng)
    shown = (
        rng.choice((b"", rng.randbytes(16), secret[:-1], secret + b"\0", b"x" * 9000)) if fate == "wrong" else secret
    )
    honest = _redeem(shown, csr)
    message = honest if rng.random() < 0.5 else spoiled(honest, rng)
    out = world.issuer(book).answer(message, now)
    read = _read(message)
    if out == REFUSAL:
        require(not _deserves(read, fate, secret, world, book), "the right token was refused")
        return f"{fate} token refused"
    if out == REMOVED:
        require(isinstance(read, issuing._Renew), "a token's bearer is told that it was removed")  # pyright: ignore[reportPrivateUsage]
        return "removed told"
    require(_deserves(read, fate, secret, world, book), f"a certificate for a {fate} token")
    check_certificate(msgspec.msgpack.decode(out)["cert"], read.csr, world.authority)
    return "let in"


def _redeem(secret: bytes, csr: bytes) -> bytes:
    return msgspec.msgpack.encode({"type": "redeem", "v": 1, "secret": secret, "csr": csr})


def _read(message: bytes) -> Any:
    return msgspec.msgpack.decode(message, type=issuing._Redeem | issuing._Renew)  # pyright: ignore[reportPrivateUsage]


def _meet(book: Registrar, fate: str, secret: bytes, world: World, rng: random.Random) -> float:
    if fate == "used" and not book.tokens[0].reusable:
        require(book.redeem(secret, "ab" * 16, NOW), "the first use counts")
    if fate == "removed":
        book.admit(world.node, "fuzz", NOW)
        _remove(book, world)
    return NOW + (rng.choice((3600.0, 1e6)) if fate == "expired" else 0.0)


def _remove(book: Registrar, world: World) -> None:
    book._removed = frozenset({world.node})  # pyright: ignore[reportPrivateUsage]


def _deserves(read: Any, fate: str, secret: bytes, world: World, book: Registrar) -> bool:
    """By another road than the program's: the token is open, and the request is for its own name."""
    right = isinstance(read, issuing._Redeem) and read.secret == secret and fate != "expired"  # pyright: ignore[reportPrivateUsage]
    node = is_honest(read.csr)
    kept = fate != "used" or book.tokens[0].reusable
    return right and kept and node is not None and not (fate == "removed" and node == world.node)


def renew(world: World, rng: random.Random) -> str:
    """Renewals with certificates of others, of other clusters, of the head, spoiled, or long ended."""
    book, removed = world.book(), rng.random() < 0.2
    if removed:
        _remove(book, world)
    certificate = rng.choice(
        (world.certificate, world.certificate, world.head.certificate_der, world.stranger.certificate_der, world.ca_der)
    )
    certificate = spoiled_der(certificate, rng) if rng.random() < 0.4 else certificate
    csr = rng.choice((world.csr, world.csr, identity.make_request(world.head.key_pem), hostile_request(rng)))
    honest = msgspec.msgpack.encode({"type": "renew", "v": 1, "cert": certificate, "csr": csr})
    message = honest if rng.random() < 0.7 else spoiled(honest, rng)
    out = world.issuer(book).answer(message, NOW + rng.choice((0.0, YEAR_S)))
    if out in (REFUSAL, REMOVED):
        require(not _may_renew(message, world) or removed, "the right certificate was not renewed")
        require(
            out == REFUSAL or removed or not isinstance(_read(message), issuing._Renew),
            "a node that stays is told it was removed",
        )  # pyright: ignore[reportPrivateUsage]
        return "renewal refused" if out == REFUSAL else "removed told"
    read = _read(message)
    require(_may_renew(message, world) and not removed, "a renewal that nobody deserved")
    check_certificate(msgspec.msgpack.decode(out)["cert"], read.csr, world.authority)
    return "renewed"


def _may_renew(message: bytes, world: World) -> bool:
    read = _read(message)
    is_renewal = isinstance(read, issuing._Renew)  # pyright: ignore[reportPrivateUsage]
    return is_renewal and read.cert == world.certificate and is_honest(read.csr) == world.node


def applicant(world: World, rng: random.Random) -> str:
    """A hostile master: the secret is said to nobody but the machine that the token's cluster marked as its head."""
    token = parse_token(world.book().invite(reusable=False, hours=1)[0])
    greeting = world.issuer(world.book()).greeting(NOW)
    if rng.random() < 0.2:  # a node of the cluster, which is not its head, says that it is
        greeting = msgspec.msgpack.encode({**msgspec.msgpack.decode(greeting), "head": world.node})
    master = read_greeting(greeting if rng.random() < 0.6 else spoiled(greeting, rng))
    check_master(master, token, NOW)
    leaf = rng.choice((world.head.certificate_der, world.certificate, world.stranger.certificate_der, world.ca_der))
    leaf = spoiled_der(leaf, rng) if rng.random() < 0.4 else leaf
    one = TokenApplicant(token, world.key, master)
    said = one.request(leaf)
    require(leaf == world.head.certificate_der or token.secret not in said, "the secret was said to a stranger")
    return _finish(one, world, rng)


def _finish(one: TokenApplicant, world: World, rng: random.Random) -> str:
    issued = msgspec.msgpack.encode({"type": "issued", "cert": world.certificate, "cluster": "home"})
    spoiled_cert = spoiled_der(rng.choice((world.certificate, world.head.certificate_der)), rng)
    message = rng.choice(
        (
            spoiled(issued, rng),
            REFUSAL,
            REMOVED,
            issued,
            msgspec.msgpack.encode({"type": "issued", "cert": spoiled_cert, "cluster": "home"}),
        )
    )
    credentials = one.finish(message, "laptop")
    require(same(message, issued, issuing._Issued, "cluster"), "credentials from a certificate that was changed")  # pyright: ignore[reportPrivateUsage]
    require(credentials.node_id == world.node, "credentials of another node")
    return "applicant let in"


def renewal_applicant(world: World, rng: random.Random) -> str:
    """What comes back to a node that renews: its own certificate from its own cluster, not older, or an error."""
    own = identity.Credentials(
        world.node,
        "laptop",
        "home",
        world.head.node_id,
        world.key,
        identity.to_pem(world.certificate),
        world.authority.certificate_pem,
    )
    certificate = rng.choice(
        (
            world.certificate,
            spoiled_der(world.certificate, rng),
            world.head.certificate_der,
            world.stranger.certificate_der,
        )
    )
    message = msgspec.msgpack.encode({"type": "issued", "cert": certificate, "cluster": "home"})
    got = RenewalApplicant(own).finish(message if rng.random() < 0.6 else spoiled(message, rng))
    require(got.certificate_der == world.certificate, "another certificate was taken")
    return "applicant renewed"


def token_text(world: World, rng: random.Random) -> str:
    """Only the very token is read as one; capital letters and spaces around it do not matter."""
    text, _ = world.book().invite(reusable=False, hours=1)
    spoiled_text = spoil(text.encode(), rng).decode("utf-8", "surrogateescape")
    shown = rng.choice(
        (
            spoiled_text,
            text.upper(),
            f" {text}\n",
            text[:-1],
            text + "a",
            "vrm1-" + "a" * 10_000,
            text.replace("a", "а"),
        )
    )
    require(parse_token(shown) == parse_token(text), "another token was read")
    return "token read"


KINDS: Final = (redeem, redeem, redeem, renew, renew, applicant, renewal_applicant, token_text)
REFUSES: Final = (TrustError, IncompatibleError, TokenError)
