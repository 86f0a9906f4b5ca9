"""Messages in and out: what comes out is what went in, or a RemoteProtocolError."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_samples import SAMPLES, STEP, Sample, hello, tensor
from transport.codec import MAX_TENSORS, decode, encode
from transport.contracts import Received, TensorBuffer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.framing import HEADER_BYTES, OPTIONAL, FrameHeader
from transport.messages import MESSAGES, Activation, Goodbye, Hello, Message, Ping, Step, StepRow
from transport.types import DTYPE_BYTES, TensorSpec

ACTIVATION = next(sample for sample in SAMPLES if isinstance(sample.message, Activation))
EMPTY = memoryview(b"")


def take_apart(frame: bytes) -> tuple[FrameHeader, bytes, memoryview]:
    header = FrameHeader.unpack(frame[:HEADER_BYTES])
    meta_end = HEADER_BYTES + header.meta_length
    return header, frame[HEADER_BYTES:meta_end], memoryview(frame)[meta_end:]


def header_for(type_id: int, flags: int = 0, **changes: int) -> FrameHeader:
    return msgspec.structs.replace(FrameHeader(1, 0, type_id, flags, 0, 0, 0, 0, 0), **changes)


def decode_with(message: object, table: object, payload: bytes = b"", type_id: int = 14) -> Received | None:
    """Meta as a hostile sender would write it: any msgpack."""
    meta = msgspec.msgpack.encode([message, table])
    return decode(header_for(type_id, epoch=3, number=7), meta, memoryview(payload))


def activation(**changes: Any) -> Activation:
    return Activation(1, msgspec.structs.replace(STEP, **changes))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample.message).__name__)
def test_a_message_survives(sample: Sample) -> None:
    received = decode(*take_apart(sample.frame()))
    assert received is not None
    assert (received.message, received.epoch, received.number) == (sample.message, sample.epoch, sample.number)
    assert {name: (buffer.spec, bytes(buffer.data)) for name, buffer in received.tensors.items()} == {
        buffer.spec.name: (buffer.spec, bytes(buffer.data)) for buffer in sample.tensors
    }


def test_tensors_are_sent_from_their_memory_and_received_as_slices_of_the_payload() -> None:
    mine = memoryview(bytearray(range(24)))
    head, pieces = encode(3, 7, ACTIVATION.message, [TensorBuffer(TensorSpec("x", "float32", (2, 3), 99), mine)])
    assert pieces == [mine] and pieces[0] is mine
    header, meta, _ = take_apart(head)
    payload = memoryview(bytearray(mine))
    received = decode(header, meta, payload)
    assert received is not None
    payload[0] = 77
    assert received.tensors["x"].data[0] == 77
    assert received.tensors["x"].spec.offset == 0


@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=4)), max_size=6))
def test_any_tensors_laid_out_by_width_survive(kinds: list[tuple[str, list[int]]]) -> None:
    kinds.sort(key=lambda kind: -DTYPE_BYTES[kind[0]])
    tensors: list[TensorBuffer] = []
    for index, (dtype, shape) in enumerate(kinds):
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        tensors.append(tensor(f"t{index}", dtype, tuple(shape), bytes([index]) * size))
    head, pieces = encode(3, 7, ACTIVATION.message, tensors)
    received = decode(*take_apart(b"".join([head, *pieces])))
    assert received is not None
    assert [(buffer.spec.name, buffer.spec.dtype, bytes(buffer.data)) for buffer in received.tensors.values()] == [
        (buffer.spec.name, buffer.spec.dtype, bytes(buffer.data)) for buffer in tensors
    ]


@given(st.sampled_from(SAMPLES), st.data())
def test_altered_meta_with_a_good_checksum_never_raises_anything_else(sample: Sample, data: st.DataObject) -> None:
    header, meta, payload = take_apart(sample.frame())
    altered = bytearray(meta)
    for index, byte in data.draw(
        st.dictionaries(st.integers(0, len(meta) - 1), st.integers(0, 255), max_size=6)
    ).items():
        altered[index] = byte
    cut = data.draw(st.integers(0, len(altered)) | st.just(len(altered)))
    read_or_refused(header, bytes(altered[:cut]), payload)


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=200), st.binary(max_size=64))
def test_noise_as_meta_never_raises_anything_else(type_id: int, meta: bytes, payload: bytes) -> None:
    read_or_refused(header_for(type_id), meta, memoryview(payload))


def read_or_refused(header: FrameHeader, meta: bytes, payload: memoryview) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode(header, meta, payload), Received)


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"\x92\x81\xa6number\x01" + b"\x91" * 100_000,  # nested beyond any stack
        b"\x93\x81\xa6number\x01\x90" + b"\x91" * 100_000,  # the same where it would be skipped
        b"\x92\x81\xa6number\x01\xdd\xff\xff\xff\xff",  # a table of four thousand million
        b"\x92\xdf\xff\xff\xff\xff",
        b"\x92\x81\xa2\xff\xfe\x01\x90",  # a key that is not UTF-8
        b"\x92\x81\xa6number\x01\x90\x00",  # one byte too many
        b"\xc1",
    ],
    ids=["empty", "nested", "nested-skipped", "long-table", "long-map", "not-utf8", "trailing", "reserved"],
)
def test_hostile_meta_is_refused(meta: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="Ping"):
        decode(header_for(Ping.type_id), meta, EMPTY)


@pytest.mark.parametrize(
    ("table", "payload", "why"),
    [
        ([["x", "float64", [1], 0]], bytes(8), "dtype"),
        ([["x", "int8", [4], 0]], bytes(3), "payload has 3"),
        ([["x", "int8", [4], 0]], bytes(5), "payload has 5"),
        ([["x", "int8", [4], 1]], bytes(5), "misplaced"),
        ([["x", "int8", [2], 0], ["y", "int8", [2], 1]], bytes(3), "misplaced"),
        ([["x", "int8", [2], 0], ["y", "int8", [2], 3]], bytes(5), "misplaced"),
        ([["x", "int8", [2], 2], ["y", "int8", [2], 0]], bytes(4), "misplaced"),
        ([["x", "int8", [1], 0], ["y", "float32", [1], 1]], bytes(5), "wider dtypes"),
        ([["x", "int8", [2], 0], ["x", "int8", [2], 2]], bytes(4), "one name"),
        ([["x", "int8", [-1], 0]], b"", ">= 0"),
        ([["x", "int8", [-1, -4], 0]], bytes(4), ">= 0"),
        ([["x", "int8", [4], -4]], bytes(4), ">= 0"),
        ([["x", "int8", [2**31], 0]], b"", "shape"),
        ([["x", "int64", [2**30, 2**30, 0], 0]], b"", "shape"),
        ([["x", "int64", [2**31 - 1] * 8, 0]], bytes(8), "shape"),
        ([["x", "int8", [1] * 9, 0]], bytes(1), "shape"),
        ([["x", "int8", [1] * 1_000_000, 0]], bytes(1), "shape"),
        ([["x" * 129, "int8", [1], 0]], bytes(1), "shape"),
        ([[f"t{index}", "int8", [0], 0] for index in range(MAX_TENSORS + 1)], b"", f"length <= {MAX_TENSORS}"),
        ([], bytes(1), "payload has 1"),
        ([["x", "int8", [2**64 - 1], 0]], b"", "Activation"),  # the largest that msgpack can say
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_tensor_table_that_does_not_fit_is_refused(table: list[Any], payload: bytes, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode_with(ACTIVATION.message, table, payload)


def test_sixty_four_tensors_are_fine() -> None:
    received = decode_with(ACTIVATION.message, [[f"t{index}", "int8", [1], index] for index in range(64)], bytes(64))
    assert received is not None and len(received.tensors) == 64


@pytest.mark.parametrize(
    ("message", "type_id"),
    [
        ({"number": -1}, Ping.type_id),
        ({"number": 2**63}, Ping.type_id),
        ({"number": 1.5}, Ping.type_id),
        ({}, Ping.type_id),
        ({"reason": 5}, Goodbye.type_id),
        ({"stage": 0, "step": [3, 7, [[1, -1, 1, [], [], False]]]}, Activation.type_id),
        ({"stage": 0, "step": [3, 7, [[1, 0, 1, [0], [[-5]], False]]]}, Activation.type_id),
        ({"stage": 0, "step": [3, 7, [[1, 0, 1, [0], [], False]]]}, Activation.type_id),
        ({"stage": 0, "step": [3, 7, [[1, 0, 2, [], [], False]], [], "rows", [1]]}, Activation.type_id),
        ({"stage": 0, "step": [3, 7, [], [], "logits"]}, Activation.type_id),
        ({"stage": 0, "step": [3, 8, []]}, Activation.type_id),
        ({"stage": 0, "step": [2, 7, []]}, Activation.type_id),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(message: dict[str, Any], type_id: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_with(message, [], type_id=type_id)


def test_fields_of_a_younger_minor_version_are_passed_over() -> None:
    received = decode_with({"number": 5, "urgent": True}, [], type_id=Ping.type_id)
    assert received is not None and received.message == Ping(5)


class Whisper(Message, frozen=True):
    """A message that only a younger program knows."""

    type_id: ClassVar[int] = 4000
    optional: ClassVar[bool] = True
    text: str


def test_an_unknown_message_is_skipped_if_flagged_optional_and_refused_if_not() -> None:
    assert decode(header_for(4000, OPTIONAL), b"\xc1 whatever", memoryview(b"payload")) is None
    with pytest.raises(RemoteProtocolError, match="unknown type 4000"):
        decode(header_for(4000), b"", EMPTY)


def test_optional_messages_carry_the_flag() -> None:
    assert [type(sample.message).__name__ for sample in SAMPLES if take_apart(sample.frame())[0].optional] == [
        "StatusShare",
        "Roll",
        "Removed",
        "Renew",
        "Renewed",
        "FetchProgress",
        "Leaving",
        "AskSpans",
        "Spans",
        "LinkSpeed",
        "BadFrames",
        "FetchLayersAhead",
        "AheadProgress",
    ]
    assert take_apart(encode(0, 0, Whisper("psst"))[0])[0].optional


def test_a_message_of_another_major_is_refused_but_its_hello_is_read() -> None:
    ping, greeting = take_apart(encode(0, 0, Ping(1))[0]), take_apart(encode(0, 0, hello(major=2))[0])
    with pytest.raises(RemoteProtocolError, match=r"protocol 2\.0"):
        decode(msgspec.structs.replace(ping[0], major=2), ping[1], EMPTY)
    received = decode(msgspec.structs.replace(greeting[0], major=2), greeting[1], EMPTY)
    assert received is not None and isinstance(received.message, Hello)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([tensor("x", "int8", (3,), b"12")], "plain bytes"),
        ([tensor("x", "float64", (0,), b"")], "dtype"),
        ([tensor("x", "int8", (1,), b"1"), tensor("y", "float32", (1,), b"1234")], "wider dtypes"),
        ([tensor("x", "int8", (1,), b"1"), tensor("x", "int8", (1,), b"1")], "one name"),
        ([TensorBuffer(TensorSpec("x", "int8", (2,), 0), memoryview(b"1234")[::2])], "plain bytes"),
        ([TensorBuffer(TensorSpec("x", "float32", (2,), 0), memoryview(bytes(8)).cast("f"))], "plain bytes"),
    ],
)
def test_tensors_that_the_other_side_would_refuse_are_not_sent(tensors: list[TensorBuffer], why: str) -> None:
    with pytest.raises(LocalProtocolError, match=why):
        encode(3, 7, ACTIVATION.message, tensors)


@pytest.mark.parametrize(
    ("epoch", "message"),
    [
        (4, activation()),
        (3, activation(token_ids=(1,))),
        (3, activation(rows=(StepRow(1, 0, 1, (0, 0), ((),), False),), token_ids=())),
        (-1, Ping(1)),
        (2**64, Ping(1)),
        (0, Ping(2**70)),
        (0, Goodbye(3j)),  # type: ignore[arg-type]
        (0, type("Stray", (Message,), {})()),
    ],
    ids=str,
)
def test_messages_that_the_wire_cannot_carry_are_not_sent(epoch: int, message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(epoch, 7, message)


def test_a_step_may_have_no_rows() -> None:
    step = Step(0, 0, (), ended=(1,))
    received = decode(
        *take_apart(encode(0, 0, Activation(0, step), [tensor("hidden_states", "float32", (0, 64), b"")])[0])
    )
    assert received is not None and received.message == Activation(0, step)
    assert len(received.tensors["hidden_states"].data) == 0
