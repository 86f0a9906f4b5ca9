"""Who may say what and when; steps in sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_samples import ELM, OAK, SAMPLES, Sample, hello, tensor
from transport.codec import encode
from transport.connection import DEPARTS, OTHER_END, Connection, Role, State, StepOrder, check_hello
from transport.contracts import Received
from transport.errors import (
    IncompatibleError,
    LinkClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    TrustError,
)
from transport.framing import OPTIONAL, FrameHeader
from transport.messages import Activation, Goodbye, Hello, Ping, Step


def take(connection: Connection, data: bytes) -> Received | None:
    connection.parser.feed(data)
    frame = connection.parser.next_event()
    assert frame is not None
    return connection.receive(frame)


def pair(role: Role) -> tuple[Connection, Connection]:
    here, there = Connection(role, hello(ELM, "elm"), OAK), Connection(OTHER_END[role], hello(OAK, "oak"), ELM)
    take(here, there.greeting())
    take(there, here.greeting())
    return here, there


@pytest.mark.parametrize("role", Role)
def test_hello_opens_a_link(role: Role) -> None:
    here, there = pair(role)
    assert (here.state, there.state) == (State.OPEN, State.OPEN)
    assert (here.hello.name, there.hello.name) == ("oak", "elm")
    assert here.hello.kind == there.hello.kind == role.value.split()[0]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample.message).__name__)
def test_each_message_passes_exactly_where_the_table_lets_it(role: Role, sample: Sample) -> None:
    message, epoch, number, tensors = sample.message, sample.epoch, sample.number, sample.tensors
    here, there = pair(role)
    if message.type_id in DEPARTS[role]:
        head, payload = here.send(message, epoch, number, tensors)
        received = take(there, b"".join([head, *payload]))
        assert received is not None and received.message == message
    else:
        with pytest.raises(LocalProtocolError, match="may not be sent"):
            here.send(message, epoch, number, tensors)
        with pytest.raises(RemoteProtocolError, match="arrived on a"):
            take(there, sample.frame())


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample.message).__name__)
def test_nothing_but_hello_comes_first(role: Role, sample: Sample) -> None:
    connection = Connection(role, hello(), None)
    if not isinstance(sample.message, Hello):
        with pytest.raises(LocalProtocolError):
            connection.send(sample.message)
        with pytest.raises(RemoteProtocolError, match="in state greeting"):
            take(connection, sample.frame())


def test_an_unknown_optional_message_is_skipped_but_never_before_hello() -> None:
    unknown = FrameHeader(1, 0, 4000, OPTIONAL, 0, 0, 0, 0, 0).pack()
    here, _ = pair(Role.CONTROL)
    assert take(here, unknown) is None
    with pytest.raises(RemoteProtocolError):
        take(Connection(Role.CONTROL, hello(), None), unknown)


@pytest.mark.parametrize("role", Role)
def test_after_goodbye_nothing_more(role: Role) -> None:
    here, there = pair(role)
    goodbye, _ = here.send(Goodbye("done"))
    received = take(there, goodbye)
    assert received is not None and received.message == Goodbye("done")
    assert there.state is State.CLOSED
    with pytest.raises(LinkClosedError):
        there.send(Goodbye("me too"))
    with pytest.raises(RemoteProtocolError):
        take(there, goodbye)


def test_only_a_data_receiver_makes_room_for_a_payload_and_only_for_an_activation() -> None:
    allocated: list[int] = []

    def allocate(size_bytes: int) -> memoryview:
        allocated.append(size_bytes)
        return memoryview(bytearray(size_bytes))

    receiver = Connection(Role.DATA_RECEIVER, hello(), None, allocate=allocate)
    take(receiver, Connection(Role.DATA_SENDER, hello(OAK, "oak"), None).greeting())
    for type_id in (Goodbye.type_id, Hello.type_id, Ping.type_id):
        with pytest.raises(RemoteProtocolError):
            receiver.parser._admit(FrameHeader(1, 0, type_id, 0, 0, 0, 0, 0, 100))
    control, _ = pair(Role.CONTROL)
    control.parser.feed(FrameHeader(1, 0, 4000, OPTIONAL, 0, 0, 0, 0, 1).pack())
    with pytest.raises(RemoteProtocolError, match="limit"):
        control.parser.next_event()
    assert not allocated


def test_a_hello_of_more_than_16_kib_is_refused_unread() -> None:
    connection = Connection(Role.CONTROL, hello(), None)
    connection.parser.feed(encode(0, 0, hello(features=("x" * 20_000,)))[0][:64])
    with pytest.raises(RemoteProtocolError, match="too long"):
        connection.parser.next_event()


def test_messages_too_large_for_the_link_are_not_sent() -> None:
    control, _ = pair(Role.CONTROL)
    with pytest.raises(LocalProtocolError, match="too large"):
        control.send(Goodbye("x" * (1 << 20)))
    sender, _ = pair(Role.DATA_SENDER)
    large = tensor("hidden_states", "int8", ((256 << 20) + 1,), b"")
    vast = memoryview(bytearray((256 << 20) + 1))  # never touched: costs no memory
    with pytest.raises(LocalProtocolError, match="too large"):
        sender.send(Activation(0, Step(0, 0, ())), tensors=[type(large)(large.spec, vast)])


def test_another_major_names_both_versions_and_the_machine_to_update() -> None:
    with pytest.raises(IncompatibleError) as older_here:
        check_hello(hello(name="elm"), hello(OAK, "oak", major=2), OAK)
    assert "1.0" in str(older_here.value) and "2.0" in str(older_here.value) and "oak" in str(older_here.value)
    assert older_here.value.hint == "Update VRAMancer on this machine."
    with pytest.raises(IncompatibleError) as older_there:
        check_hello(hello(name="elm", major=2), hello(OAK, "oak"), OAK)
    assert older_there.value.hint == "Update VRAMancer on 'oak'."


def test_a_hello_of_another_major_that_cannot_be_read_is_still_told_apart() -> None:
    connection = Connection(Role.CONTROL, hello(), None)
    with pytest.raises(IncompatibleError, match=r"the other machine 9\.4"):
        take(connection, FrameHeader(9, 4, Hello.type_id, 0, 0, 0, 0, 0, 0).pack())


def test_another_minor_is_fine() -> None:
    check_hello(hello(), hello(OAK, "oak", minor=7), OAK)


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (hello(OAK, "oak", kind="data"), RemoteProtocolError),
        (hello(ELM, "oak"), TrustError),
        (hello(OAK, "oak\x1b[2J"), RemoteProtocolError),
        (hello(OAK, "oak", features=("a\nb",)), RemoteProtocolError),
    ],
    ids=["kind", "node", "name", "features"],
)
def test_a_hello_that_does_not_fit_is_refused(other: Hello, error: type[TransportError]) -> None:
    with pytest.raises(error):
        check_hello(hello(), other, OAK)


def test_without_a_certificate_any_node_may_greet() -> None:
    check_hello(hello(), hello(OAK, "oak"), None)


def test_own_hello_says_the_kind_of_the_link() -> None:
    received = take(
        Connection(Role.DATA_RECEIVER, hello(), None), Connection(Role.DATA_SENDER, hello(), None).greeting()
    )
    assert received is not None and isinstance(received.message, Hello) and received.message.kind == "data"


# --- steps --------------------------------------------------------------------------------------------------


def test_steps_in_sequence_and_epochs_growing() -> None:
    order = StepOrder()
    assert [order.accept(2, 0), order.accept(2, 1), order.accept(5, 0), order.accept(5, 1)] == [True] * 4


def test_steps_of_an_older_epoch_are_dropped() -> None:
    order = StepOrder()
    order.accept(3, 0)
    assert not order.accept(2, 17)
    assert order.accept(3, 1)


@pytest.mark.parametrize(("epoch", "number"), [(3, 2), (3, 0), (4, 1)], ids=["gap", "repeat", "late start"])
def test_a_step_out_of_sequence_is_an_error_and_changes_nothing(epoch: int, number: int) -> None:
    order = StepOrder()
    order.accept(3, 0)
    with pytest.raises(RemoteProtocolError, match=rf"{epoch}/{number} arrived"):
        order.accept(epoch, number)
    assert order.accept(3, 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=40))
def test_what_is_accepted_is_always_a_sequence(arrivals: list[tuple[int, int]]) -> None:
    order, accepted = StepOrder(), list[tuple[int, int]]()
    for epoch, number in arrivals:
        try:
            if order.accept(epoch, number):
                accepted.append((epoch, number))
        except RemoteProtocolError:
            pass
    assert accepted == sorted(set(accepted))
    for epoch in {epoch for epoch, _ in accepted}:
        numbers = [number for found, number in accepted if found == epoch]
        assert numbers == list(range(len(numbers)))
