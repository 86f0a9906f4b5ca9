"""`vrm-join/1` under attack: every message of both sides spoiled, at every step, with every kind of code.

The keys and the points are the operating system's random ones, so a case repeats in kind and not in every byte.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fuzz.certificate_requests import hostile_request, is_honest, pool, spoiled_der
from fuzz.findings import require
from fuzz.mutation import spoil, spoil_packed
from transport import identity, pairing
from transport.errors import IncompatibleError, PairingError, TransportError, TrustError
from transport.identity import ClusterAuthority
from transport.pairing import REFUSAL, TRIES, JoinerHandshake, MasterHandshake, PairingDesk, frame_length
from transport.words import parse_code
from vramancer_cli.runtime.registrar import Registrar

NOW: Final = 1_800_000_000.0
NAMED: Final = (PairingError, IncompatibleError, TrustError)
FATES: Final = ("right", "wrong", "expired", "used", "unknown", "worn")


@dataclass(slots=True)
class Talk:
    """One conversation, paused: both sides, and the message that is on its way. Copied before each use."""

    desk: PairingDesk
    master: MasterHandshake
    joiner: JoinerHandshake
    request: bytes
    answer: bytes
    confirm: bytes


class World:
    """A cluster, another one, and conversations paused at their last message, so that a case costs no new keys."""

    def __init__(self, rng: random.Random) -> None:
        self.authority = ClusterAuthority.create("home", NOW)
        self.head = self.authority.enrol_head("tower", identity.make_key(), NOW)
        self.other = ClusterAuthority.create("home", NOW).enrol_head("relay", identity.make_key(), NOW)
        self.key = identity.make_key()
        self.seed = rng.getrandbits(40)
        pool()
        self.talks = [self._talk() for _ in range(4)]

    def desk(self) -> tuple[PairingDesk, str]:
        """The same code each time."""
        desk = PairingDesk()
        return desk, desk.invite(NOW, random.Random(self.seed))

    def begin(self, desk: PairingDesk) -> MasterHandshake:
        return desk.begin(self.authority, self.head.certificate_der, Registrar())

    def _talk(self) -> Talk:
        desk, code = self.desk()
        master, joiner = self.begin(desk), JoinerHandshake(code, self.key, self.head.certificate_der)
        request = joiner.request(master.greeting(NOW), NOW)
        master.request(request, NOW)
        answer = master.answer()
        return Talk(desk, master, joiner, request, answer, joiner.confirm(answer))

    def talk(self, rng: random.Random) -> Talk:
        talk = rng.choice(self.talks)
        kept = {id(self.authority): self.authority, id(talk.master._book): Registrar()}  # pyright: ignore[reportPrivateUsage]
        return copy.deepcopy(talk, kept)


def spoiled(message: bytes, rng: random.Random) -> bytes:
    """As bytes, as msgpack, or with one binary field spoiled and the rest right: proofs, points and certificates."""
    match rng.randrange(5):
        case 0:
            return spoil(message, rng)
        case 1 | 2:
            return spoil_packed(message, rng)
        case _:
            fields: dict[str, Any] = msgspec.msgpack.decode(message)
            names = [name for name, value in fields.items() if isinstance(value, bytes)] or [""]
            name = rng.choice(names)
            return msgspec.msgpack.encode({**fields, name: _other_bytes(fields.get(name, b""), rng)})


def _other_bytes(value: bytes, rng: random.Random) -> bytes:
    point = rng.choice(
        (b"\0" * 32, b"\1" + b"\0" * 31, b"\xff" * 32, b"\xec" + b"\xff" * 30 + b"\x7f", rng.randbytes(32))
    )
    return rng.choice(
        (spoil(value, rng), b"", value[:-1], value + b"\0", b"A" + point, b"B" + point, b"S" + point, value)
    )


def same(first: bytes, second: bytes, kind: Any, *free: str) -> bool:
    """Whether two messages mean the same, as the side that reads them sees it; fields in `free` may differ."""
    try:
        one, two = (msgspec.msgpack.decode(message, type=kind) for message in (first, second))
    except msgspec.MsgspecError:
        return False
    return msgspec.structs.replace(one, **{name: getattr(two, name) for name in free}) == two


# --- one case of each kind ------------------------------------------------------------------------------------


def greeting(world: World, rng: random.Random) -> str:
    """A master that says something odd: the joiner goes on only with a greeting that holds together."""
    desk, code = world.desk()
    message = spoiled(world.begin(desk).greeting(NOW), rng)
    joiner = JoinerHandshake(code, world.key, world.head.certificate_der, world.head.cluster_id[:16])
    joiner.request(message, NOW)
    told = msgspec.msgpack.decode(message, type=pairing._Greeting)  # pyright: ignore[reportPrivateUsage]
    require(identity.cluster_id_of(told.ca).hex() == world.head.cluster_id, "another cluster than the announced one")
    return "greeting taken"


def request(world: World, rng: random.Random) -> str:
    """A joiner that knows the code, or a relay that changes its request: nothing is signed but what was proven."""
    talk = world.talk(rng)
    message = spoiled(talk.request, rng)
    master = world.begin(talk.desk)
    try:
        master.request(message, NOW)
        answer = master.answer()
        out = master.confirm(talk.joiner.confirm(answer), NOW) if rng.random() < 0.3 else REFUSAL
    finally:
        master.close()
    kept = same(message, talk.request, pairing._Request)  # pyright: ignore[reportPrivateUsage]
    require(out == REFUSAL or kept, "a certificate for a request that was changed on its way")
    return "request refused" if out == REFUSAL else "request kept"


def answer(world: World, rng: random.Random) -> str:
    """The master's point spoiled: the joiner says nothing that the right master would take."""
    talk = world.talk(rng)
    message = spoiled(talk.answer, rng)
    joiner = copy.deepcopy(world.talk(rng).joiner) if rng.random() < 0.2 else _unanswered(world, talk)
    proof = joiner.confirm(message)
    out = talk.master.confirm(proof, NOW)
    kept = same(message, talk.answer, pairing._Answer)  # pyright: ignore[reportPrivateUsage]
    require(out == REFUSAL or kept, "a certificate although the answer was changed on its way")
    return "answer refused" if out == REFUSAL else "answer kept"


def _unanswered(world: World, talk: Talk) -> JoinerHandshake:
    """The joiner before it had its answer: SPAKE2 finishes once."""
    joiner = copy.copy(talk.joiner)
    exchange = copy.copy(joiner._exchange)  # pyright: ignore[reportPrivateUsage]
    exchange._finished = False
    joiner._exchange = exchange  # pyright: ignore[reportPrivateUsage]
    return joiner


def confirm(world: World, rng: random.Random) -> str:
    """Proofs right and wrong, for codes of every fate: only the right proof of an open code gives a certificate."""
    talk, fate = world.talk(rng), rng.choice(FATES)
    message = talk.confirm if rng.random() < 0.4 else spoiled(talk.confirm, rng)
    now = _meet(talk, fate, rng)
    before = talk.desk.open_codes(now)
    out = talk.master.confirm(message, now)
    if same(message, talk.confirm, pairing._Confirm) and fate == "right":  # pyright: ignore[reportPrivateUsage]
        require(out != REFUSAL, "the right code was refused")
        require(talk.desk.open_codes(now) == before - 1, "the code is still open")
        return "let in"
    require(out == REFUSAL, f"a certificate for a {fate} code, or without its proof")
    return f"{fate} refused"


def _meet(talk: Talk, fate: str, rng: random.Random) -> float:
    """Gives the code its fate; the time at which the proof comes."""
    if fate == "expired":
        return NOW + rng.choice((600.0, 601.0, 86400.0))
    if fate == "used":
        require(talk.desk.accept(1, talk.desk.code_at(1, NOW) or "", True, NOW), "the first proof is taken")
    if fate == "unknown":
        talk.desk._open.clear()  # pyright: ignore[reportPrivateUsage]
    if fate == "wrong":
        talk.master._keys = pairing._derive(rng.randbytes(32), [b""])  # pyright: ignore[reportPrivateUsage]
    if fate == "worn":
        for _ in range(TRIES):
            talk.desk.accept(1, talk.desk.code_at(1, NOW) or "", False, NOW)
    return NOW


def guessing(world: World, rng: random.Random) -> str:
    """Wrong proofs are counted, each once; garbage is no try; and the sixth is refused whatever it says."""
    talk = world.talk(rng)
    wrong = rng.choice((TRIES - 1, TRIES, TRIES + 1))
    kept: dict[int, Any] = {id(part): part for part in (talk.desk, world.authority, talk.master._book)}  # pyright: ignore[reportPrivateUsage]
    masters = [copy.deepcopy(talk.master, dict(kept)) for _ in range(wrong)]
    for master in masters:
        proof = msgspec.msgpack.encode(
            {"confirm": rng.choice((b"", rng.randbytes(32), rng.randbytes(31), b"x" * 9000))}
        )
        require(master.confirm(proof, NOW) == REFUSAL, "refusals differ")
    out = talk.master.confirm(talk.confirm, NOW)
    require((out == REFUSAL) == (wrong >= TRIES), f"after {wrong} wrong tries the right code counts the other way")
    return "guesses counted"


def accepted(world: World, rng: random.Random) -> str:
    """The last message spoiled, or made by a master that knows the code and lies about the certificate."""
    talk = world.talk(rng)
    honest = talk.master.confirm(talk.confirm, NOW)
    fields: dict[str, Any] = msgspec.msgpack.decode(honest)
    if rng.random() < 0.5:
        cert = spoiled_der(rng.choice((fields["cert"], world.other.certificate_der, talk.joiner._csr)), rng)  # pyright: ignore[reportPrivateUsage]
        keys: Any = talk.master._keys  # pyright: ignore[reportPrivateUsage]
        message = msgspec.msgpack.encode({**fields, "cert": cert, "confirm": keys.master_proof(cert)})
    else:
        message = rng.choice((spoiled(honest, rng), REFUSAL, honest))
    credentials = talk.joiner.finish(message, "laptop")
    kept = same(message, honest, pairing._Accepted, "cluster")  # pyright: ignore[reportPrivateUsage]
    require(kept or _still_fits(credentials.certificate_der, world), "credentials from a message that was changed")
    return "joined"


def _still_fits(certificate_der: bytes, world: World) -> bool:
    """DER that was spoiled and is the same certificate all the same (bytes behind its end do not parse)."""
    identity.check_issued(
        certificate_der, identity.to_der(world.authority.certificate_pem), identity.node_id_of_key(world.key)
    )
    return True


def hostile_joiner(world: World, rng: random.Random) -> str:
    """It knows the code and asks for more than its own name: CA rights, another name, another kind of key."""
    talk, csr = world.talk(rng), hostile_request(rng)
    wanted: Any = talk.master._request  # pyright: ignore[reportPrivateUsage]
    talk.master._request = msgspec.structs.replace(wanted, csr=csr)  # pyright: ignore[reportPrivateUsage]
    out = talk.master.confirm(talk.confirm, NOW)
    require(out != REFUSAL, "the right code was refused")
    check_certificate(msgspec.msgpack.decode(out)["cert"], csr, world.authority)
    talk.master.remembered(out, NOW)
    return "hostile request honest after all"


def check_certificate(certificate_der: bytes, csr: bytes, authority: ClusterAuthority) -> None:
    """It is for the request's own key and name, and for nothing more."""
    node = is_honest(csr)
    require(node is not None, "a certificate for a request that asks for more than its own name")
    require(identity.node_id_of_certificate(certificate_der) == node, "a certificate for another node")
    identity.check_issued(certificate_der, identity.to_der(authority.certificate_pem), node or "")
    require(not identity.is_heads(certificate_der), "a certificate of the head")


def texts(_: World, rng: random.Random) -> str:
    """What a person types, and the four bytes that say how long a message is."""
    code = rng.choice(("4-otter-maple-drum", "4 otter maple drum", "99-x", ""))
    parts = [*code, *rng.choices("0٣𝟝²-– \t\0é🦌zZ", k=rng.choice((0, 1, 3, 2000)))]
    rng.shuffle(parts)
    for attempt in (
        lambda: parse_code("".join(parts)),
        lambda: require(frame_length(rng.randbytes(4)) <= 16384, "too long"),
    ):
        try:
            attempt()
        except PairingError:
            continue
    return "texts read"


KINDS: Final = (
    greeting,
    request,
    answer,
    confirm,
    confirm,
    guessing,
    accepted,
    accepted,
    hostile_joiner,
    hostile_joiner,
    texts,
)
REFUSES: Final[tuple[type[TransportError], ...]] = NAMED
