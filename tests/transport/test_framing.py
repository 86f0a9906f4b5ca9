"""VTP frames: the layout to the byte, any split, any damage, any lie about lengths."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_samples import SAMPLES, Sample
from transport.errors import RemoteProtocolError
from transport.framing import (
    CONTROL_LIMITS,
    DATA_LIMITS,
    HEADER_BYTES,
    OPTIONAL,
    Frame,
    FrameHeader,
    FrameParser,
    Limits,
    heap_buffer,
)

SMALL = Limits(max_meta_bytes=1 << 12, max_payload_bytes=1 << 12)
META = b"\x91\x01meta"
HEADER = FrameHeader(1, 0, 14, OPTIONAL, 3, 7, len(META), zlib.crc32(META), 5)
FRAME = HEADER.pack() + META + b"bytes"

headers = st.builds(
    FrameHeader,
    major=st.integers(0, 2**8 - 1),
    minor=st.integers(0, 2**8 - 1),
    type=st.integers(1, 2**16 - 1),
    flags=st.sampled_from([0, OPTIONAL]),
    epoch=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**64 - 1),
    meta_length=st.integers(0, 2**32 - 1),
    meta_crc32=st.integers(0, 2**32 - 1),
    payload_length=st.integers(0, 2**64 - 1),
)


def frame_of(meta: bytes, payload: bytes = b"", **changes: int) -> bytes:
    header = FrameHeader(1, 0, 14, 0, 0, 0, len(meta), zlib.crc32(meta), len(payload))
    return msgspec.structs.replace(header, **changes).pack() + meta + payload


def no_allocation(size_bytes: int) -> memoryview:
    raise AssertionError(f"allocated {size_bytes} bytes")


def values(frames: list[Frame]) -> list[tuple[FrameHeader, bytes, bytes]]:
    return [(frame.header, bytes(frame.meta), bytes(frame.payload)) for frame in frames]


def drain(parser: FrameParser) -> list[Frame]:
    frames: list[Frame] = []
    while (frame := parser.next_event()) is not None:
        frames.append(frame)
    return frames


def read_all(parser: FrameParser, data: bytes, most_bytes: int) -> list[Frame]:
    """As a socket does: straight into `wanted()`, at most so many bytes at a time."""
    frames: list[Frame] = []
    while data:
        target = parser.wanted()
        count = min(len(target), len(data), most_bytes)
        target[:count] = data[:count]
        data = data[count:]
        frame = parser.advance(count)
        frames += [frame] if frame else []
    return frames


def test_the_layout_to_the_byte() -> None:
    packed = HEADER.pack()
    assert len(packed) == HEADER_BYTES == 64
    fields = (
        (0, b"VTP1"), (4, b"\x01"), (5, b"\x00"), (6, (14).to_bytes(2, "little")), (8, (1).to_bytes(4, "little")),
        (12, bytes(4)), (16, (3).to_bytes(8, "little")), (24, (7).to_bytes(8, "little")),
        (32, len(META).to_bytes(4, "little")), (36, zlib.crc32(META).to_bytes(4, "little")),
        (40, (5).to_bytes(8, "little")), (48, bytes(12)), (60, zlib.crc32(packed[:60]).to_bytes(4, "little")),
    )  # fmt: skip
    for offset, expected in fields:
        assert packed[offset : offset + len(expected)] == expected


@given(headers)
def test_a_header_survives_packing(header: FrameHeader) -> None:
    assert FrameHeader.unpack(header.pack()) == header


def test_a_value_too_large_for_its_field_is_not_packed() -> None:
    with pytest.raises(struct.error):
        msgspec.structs.replace(HEADER, epoch=2**64).pack()


@given(st.data())
def test_any_split_gives_the_same_frames(data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=5))
    stream = b"".join(sample.frame() for sample in samples)
    whole = FrameParser(SMALL)
    whole.feed(stream)
    expected = values(drain(whole))
    assert len(expected) == len(samples)

    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    parser = FrameParser(SMALL)
    frames: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parser.feed(stream[start:end])
        frames += drain(parser)
    assert values(frames) == expected
    assert not parser.mid_frame

    most_bytes = data.draw(st.integers(1, 200))
    assert values(read_all(FrameParser(SMALL), stream, most_bytes)) == expected


@given(st.sampled_from(SAMPLES), st.data())
def test_any_damage_to_header_or_meta_is_a_protocol_error(sample: Sample, data: st.DataObject) -> None:
    frame = sample.frame()
    header = FrameHeader.unpack(frame[:HEADER_BYTES])
    protected = HEADER_BYTES + header.meta_length
    damage = st.dictionaries(st.integers(0, protected - 1), st.integers(1, 255), min_size=1, max_size=8)
    damaged = bytearray(frame)
    for index, flip in data.draw(damage).items():
        damaged[index] ^= flip
    parser = FrameParser(SMALL)
    parser.feed(damaged)
    with pytest.raises(RemoteProtocolError):
        drain(parser)
    with pytest.raises(RemoteProtocolError):  # and it stays broken
        parser.wanted()


@given(st.binary(max_size=300))
def test_noise_is_a_protocol_error_or_too_little(noise: bytes) -> None:
    parser = FrameParser(SMALL, allocate=no_allocation)
    parser.feed(noise)
    try:
        assert parser.next_event() is None
    except RemoteProtocolError:
        return
    assert b"VTP1".startswith(noise[:4])


@pytest.mark.parametrize("meta_length", [0, 1 << 20, (1 << 20) + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("payload_length", [0, (256 << 20) + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("limits", [CONTROL_LIMITS, DATA_LIMITS], ids=["control", "data"])
def test_a_length_over_the_limit_allocates_nothing(limits: Limits, meta_length: int, payload_length: int) -> None:
    if meta_length <= limits.max_meta_bytes and payload_length <= limits.max_payload_bytes:
        return
    parser = FrameParser(limits, allocate=no_allocation)
    header = msgspec.structs.replace(HEADER, meta_length=meta_length, payload_length=payload_length).pack()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="limit"):
            parser.feed(header)
            parser.next_event()
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


def test_a_frame_of_exactly_the_limit_passes() -> None:
    parser = FrameParser(Limits(max_meta_bytes=6, max_payload_bytes=5))
    parser.feed(FRAME)
    assert values(drain(parser)) == [(HEADER, META, b"bytes")]


@pytest.mark.parametrize(
    ("offset", "value"), [(8, 2), (9, 1), (11, 0x80), (12, 1), (15, 1), (48, 1), (59, 255), (6, 0)], ids=str
)
def test_undefined_bits_are_refused_even_with_a_good_checksum(offset: int, value: int) -> None:
    header = bytearray(HEADER.pack())
    header[offset] = value
    header[60:] = zlib.crc32(header[:60]).to_bytes(4, "little")
    parser = FrameParser(SMALL, allocate=no_allocation)
    parser.feed(header)
    with pytest.raises(RemoteProtocolError, match="bits"):
        parser.next_event()


def test_a_stranger_is_refused_by_its_first_byte() -> None:
    parser = FrameParser(SMALL)
    parser.feed(b"G")  # ET / HTTP/1.1
    with pytest.raises(RemoteProtocolError, match="does not speak VTP"):
        parser.next_event()


def test_admit_speaks_before_anything_is_allocated() -> None:
    def refuse(header: FrameHeader) -> None:
        raise RemoteProtocolError(f"no {header.type} today")

    parser = FrameParser(SMALL, allocate=no_allocation, admit=refuse)
    parser.feed(HEADER.pack())
    with pytest.raises(RemoteProtocolError, match="no 14 today"):
        parser.next_event()


def test_damaged_meta_is_refused_before_the_payload_is_allocated() -> None:
    parser = FrameParser(SMALL, allocate=no_allocation)
    parser.feed(HEADER.pack() + b"x" * len(META))
    with pytest.raises(RemoteProtocolError, match="meta"):
        parser.next_event()


def test_the_payload_lies_in_the_memory_that_allocate_gave() -> None:
    given_out: list[memoryview] = []

    def allocate(size_bytes: int) -> memoryview:
        given_out.append(heap_buffer(size_bytes))
        return given_out[-1]

    parser = FrameParser(SMALL, allocate=allocate)
    (frame,) = read_all(parser, FRAME, 3)
    assert frame.payload is given_out[0]
    assert len(given_out) == 1


def test_a_parser_lets_go_of_a_frame_that_it_has_given() -> None:
    parser = FrameParser(SMALL)
    (frame,) = read_all(parser, FRAME, 100)
    buffer = frame.payload.obj
    frame.payload.release()
    assert isinstance(buffer, bytearray)
    buffer.clear()  # raises BufferError while any view of it lives


def test_mid_frame_from_the_first_byte_to_the_last() -> None:
    parser = FrameParser(SMALL)
    for index, byte in enumerate(FRAME):
        assert parser.mid_frame == (index > 0)
        parser.feed(bytes([byte]))
        frame = parser.next_event()
        assert (frame is not None) == (index == len(FRAME) - 1)
    assert not parser.mid_frame


def test_frames_without_meta_or_payload() -> None:
    parser = FrameParser(SMALL)
    parser.feed(frame_of(b"") + frame_of(b"m") + frame_of(b"", b"p"))
    assert [(bytes(frame.meta), bytes(frame.payload)) for frame in drain(parser)] == [
        (b"", b""),
        (b"m", b""),
        (b"", b"p"),
    ]
