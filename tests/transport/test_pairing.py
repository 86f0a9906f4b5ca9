from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport import identity, pairing
from transport.errors import IncompatibleError, PairingError
from transport.identity import ClusterAuthority, Credentials
from transport.pairing import JoinerHandshake, MasterHandshake, PairingDesk

NOW = 1_800_000_000.0
AUTHORITY = ClusterAuthority.create("home", NOW)
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), NOW)
KEY = identity.make_key()


@pytest.fixture
def desk() -> PairingDesk:
    return PairingDesk()


def invite(desk: PairingDesk, seed: int = 1) -> str:
    return desk.invite(NOW, random.Random(seed))


def wrong(code: str) -> str:
    slot, first, second, third = code.split("-")
    return "-".join((slot, first, second, "zebra" if third != "zebra" else "zipper"))


def answered(desk: PairingDesk, joiner: JoinerHandshake, now: float = NOW) -> tuple[MasterHandshake, bytes]:
    """The conversation up to the joiner's confirmation."""
    master = desk.begin(AUTHORITY, HEAD.certificate_der)
    master.request(joiner.request(master.greeting()), now)
    return master, joiner.confirm(master.answer())


def pair(desk: PairingDesk, code: str, now: float = NOW, *, seen_leaf: bytes = HEAD.certificate_der) -> Credentials:
    joiner = JoinerHandshake(code, KEY, seen_leaf)
    master, confirm = answered(desk, joiner, now)
    try:
        return joiner.finish(master.confirm(confirm, now), "laptop")
    finally:
        master.close()


def test_the_right_code_gives_a_certificate(desk: PairingDesk) -> None:
    credentials = pair(desk, invite(desk))
    assert credentials.node_id == identity.node_id_of_key(KEY)
    assert (credentials.name, credentials.cluster, credentials.head) == ("laptop", "home", HEAD.node_id)
    assert credentials.cluster_id == AUTHORITY.cluster_id
    identity.check_issued(credentials.certificate_der, identity.to_der(AUTHORITY.certificate_pem), credentials.node_id)


def test_a_code_lets_one_machine_in(desk: PairingDesk) -> None:
    code = invite(desk)
    pair(desk, code)
    with pytest.raises(PairingError, match="did not accept"):
        pair(desk, code)


def test_of_two_at_once_with_one_code_the_first_wins(desk: PairingDesk) -> None:
    code = invite(desk)
    first, second = JoinerHandshake(code, KEY, HEAD.certificate_der), JoinerHandshake(code, KEY, HEAD.certificate_der)
    (master_1, confirm_1), (master_2, confirm_2) = answered(desk, first), answered(desk, second)
    assert master_2.confirm(confirm_2, NOW) != pairing.REFUSAL
    assert master_1.confirm(confirm_1, NOW) == pairing.REFUSAL


def test_four_wrong_tries_leave_the_code_open(desk: PairingDesk) -> None:
    code = invite(desk)
    for _ in range(4):
        with pytest.raises(PairingError):
            pair(desk, wrong(code))
    assert pair(desk, code).head == HEAD.node_id


def test_the_sixth_try_and_later_are_refused_even_with_the_right_code(desk: PairingDesk) -> None:
    code = invite(desk)
    for _ in range(5):
        with pytest.raises(PairingError):
            pair(desk, wrong(code))
    for _ in range(2):
        with pytest.raises(PairingError, match="did not accept"):
            pair(desk, code)


def test_tries_count_even_when_all_began_before_the_first_failed(desk: PairingDesk) -> None:
    code = invite(desk)
    begun = [answered(desk, JoinerHandshake(wrong(code), KEY, HEAD.certificate_der)) for _ in range(6)]
    late, confirm = answered(desk, JoinerHandshake(code, KEY, HEAD.certificate_der))
    assert [master.confirm(guess, NOW) for master, guess in begun] == [pairing.REFUSAL] * 6
    assert late.confirm(confirm, NOW) == pairing.REFUSAL


def test_a_code_ends_after_ten_minutes(desk: PairingDesk) -> None:
    assert pair(desk, invite(desk), NOW + 599.9)
    with pytest.raises(PairingError):
        pair(desk, invite(desk, seed=2), NOW + 600)


def test_a_code_that_ends_during_the_conversation_is_refused(desk: PairingDesk) -> None:
    master, confirm = answered(desk, JoinerHandshake(invite(desk), KEY, HEAD.certificate_der))
    assert master.confirm(confirm, NOW + 601) == pairing.REFUSAL


def test_wrong_used_expired_and_unknown_look_the_same(desk: PairingDesk) -> None:
    used, other = invite(desk), invite(desk, seed=2)
    pair(desk, used)
    cases = {
        "used": (used, NOW),
        "wrong": (wrong(other), NOW),
        "expired": (other, NOW + 700),
        "none": ("77" + other[1:], NOW),
    }
    lengths: set[tuple[int, bytes]] = set()
    for code, now in cases.values():
        joiner = JoinerHandshake(code, KEY, HEAD.certificate_der)
        master = desk.begin(AUTHORITY, HEAD.certificate_der)
        master.request(joiner.request(master.greeting()), now)
        answer = master.answer()
        lengths.add((len(answer), master.confirm(joiner.confirm(answer), now)))
        master.close()
    assert lengths == {(len(answer), pairing.REFUSAL)}


def test_a_joiner_that_saw_another_tls_certificate_is_refused(desk: PairingDesk) -> None:
    relay = ClusterAuthority.create("home", NOW).enrol_head("relay", identity.make_key(), NOW)
    with pytest.raises(PairingError):
        pair(desk, invite(desk), seen_leaf=relay.certificate_der)


def test_a_changed_request_is_refused(desk: PairingDesk) -> None:
    """A relay that swaps the certificate request for its own gets nothing signed."""
    joiner, master = (
        JoinerHandshake(invite(desk), KEY, HEAD.certificate_der),
        desk.begin(AUTHORITY, HEAD.certificate_der),
    )
    request = msgspec.msgpack.decode(joiner.request(master.greeting()))
    request["csr"] = identity.make_request(identity.make_key())
    master.request(msgspec.msgpack.encode(request), NOW)
    assert master.confirm(joiner.confirm(master.answer()), NOW) == pairing.REFUSAL


def test_a_master_that_does_not_know_the_code_is_refused_by_the_joiner(desk: PairingDesk) -> None:
    joiner = JoinerHandshake(invite(desk), KEY, HEAD.certificate_der)
    master, confirm = answered(desk, joiner)
    accepted = msgspec.msgpack.decode(master.confirm(confirm, NOW))
    accepted["confirm"] = bytes(32)
    with pytest.raises(PairingError, match="does not know the code"):
        joiner.finish(msgspec.msgpack.encode(accepted), "laptop")


def test_the_announced_cluster_id_is_checked(desk: PairingDesk) -> None:
    greeting = desk.begin(AUTHORITY, HEAD.certificate_der).greeting()
    code = invite(desk)
    JoinerHandshake(code, KEY, HEAD.certificate_der, AUTHORITY.cluster_id[:16]).request(greeting)
    with pytest.raises(pairing.WrongClusterError):
        JoinerHandshake(code, KEY, HEAD.certificate_der, "0" * 16).request(greeting)


def test_a_greeting_whose_id_is_not_its_authoritys_is_refused(desk: PairingDesk) -> None:
    greeting = msgspec.msgpack.decode(desk.begin(AUTHORITY, HEAD.certificate_der).greeting())
    greeting["cid"] = bytes(32)
    with pytest.raises(PairingError, match="does not hold"):
        JoinerHandshake(invite(desk), KEY, HEAD.certificate_der).request(msgspec.msgpack.encode(greeting))


def test_another_version_is_named(desk: PairingDesk) -> None:
    greeting = msgspec.msgpack.decode(desk.begin(AUTHORITY, HEAD.certificate_der).greeting())
    greeting["v"] = 2
    with pytest.raises(IncompatibleError, match=r"version 2 .* with 1"):
        JoinerHandshake(invite(desk), KEY, HEAD.certificate_der).request(msgspec.msgpack.encode(greeting))


ELEMENTS = {
    "empty": b"",
    "short": b"A" + bytes(31),
    "long": b"A" + bytes(33),
    "zero": b"A\x01" + bytes(31),
    "off the curve": b"A\x02" + bytes(31),
    "order 2": b"A" + (2**255 - 20).to_bytes(32, "little"),
    "own side": b"B" + bytes(32),
    "no side": b"X" + bytes(32),
}


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_an_element_outside_the_group_is_refused(desk: PairingDesk, element: bytes) -> None:
    joiner, master = (
        JoinerHandshake(invite(desk), KEY, HEAD.certificate_der),
        desk.begin(AUTHORITY, HEAD.certificate_der),
    )
    request = msgspec.msgpack.decode(joiner.request(master.greeting()))
    request["pake"] = element
    master.request(msgspec.msgpack.encode(request), NOW)
    with pytest.raises(PairingError):
        master.answer()


def test_a_reflected_element_is_refused(desk: PairingDesk) -> None:
    joiner, master = (
        JoinerHandshake(invite(desk), KEY, HEAD.certificate_der),
        desk.begin(AUTHORITY, HEAD.certificate_der),
    )
    mine = msgspec.msgpack.decode(joiner.request(master.greeting()))["pake"]
    with pytest.raises(PairingError):
        joiner.confirm(msgspec.msgpack.encode({"pake": b"B" + mine[1:]}))


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_garbage_is_a_pairing_error_on_both_sides(message: bytes) -> None:
    desk = PairingDesk()
    with pytest.raises((PairingError, IncompatibleError)):
        JoinerHandshake("4-otter-maple-drum", KEY, HEAD.certificate_der).request(message)
    with pytest.raises(PairingError):
        desk.begin(AUTHORITY, HEAD.certificate_der).request(message, NOW)


def test_frames_are_bounded_before_they_are_read() -> None:
    framed = pairing.frame(b"abc")
    assert (pairing.frame_length(framed[:4]), framed[4:]) == (3, b"abc")
    assert pairing.frame_length((16 * 1024).to_bytes(4, "big")) == 16 * 1024
    with pytest.raises(PairingError):
        pairing.frame_length((16 * 1024 + 1).to_bytes(4, "big"))


def test_eight_conversations_at_once(desk: PairingDesk) -> None:
    under_way = [desk.begin(AUTHORITY, HEAD.certificate_der) for _ in range(8)]
    with pytest.raises(PairingError):
        desk.begin(AUTHORITY, HEAD.certificate_der)
    under_way[0].close()
    under_way[0].close()
    desk.begin(AUTHORITY, HEAD.certificate_der)
    with pytest.raises(PairingError):
        desk.begin(AUTHORITY, HEAD.certificate_der)


def test_open_codes_are_bounded_and_their_slots_differ(desk: PairingDesk) -> None:
    codes = [invite(desk, seed) for seed in range(32)]
    assert len({code.split("-")[0] for code in codes}) == 32
    with pytest.raises(PairingError):
        invite(desk)
    assert desk.invite(NOW + 600, random.Random(1))
    assert desk.open_codes(NOW + 600) == 1
