"""The wire's words stay what they were: golden bytes of every release, and every message among them."""

from __future__ import annotations

import msgspec
import pytest

from tests.helpers.wire_samples import GOLDEN, SAMPLES, Sample
from transport.codec import decode
from transport.connection import ARRIVES, Role, State
from transport.framing import HEADER_BYTES, FrameHeader
from transport.messages import MESSAGES, PROTOCOL_MAJOR, PROTOCOL_MINOR, Message

CURRENT = f"v{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
VERSIONS = sorted(folder.name for folder in GOLDEN.glob("v*"))


def name_of(sample: Sample) -> str:
    return type(sample.message).__name__


def test_every_message_has_a_sample() -> None:
    assert [type(sample.message) for sample in SAMPLES] == list(MESSAGES.values())


def test_every_message_class_is_registered_under_its_own_number() -> None:
    declared = {found for found in Message.__subclasses__() if found.__module__ == Message.__module__}
    assert set(MESSAGES.values()) == declared
    assert all(type_id == message.type_id for type_id, message in MESSAGES.items())
    assert 0 not in MESSAGES


def test_every_message_arrives_somewhere() -> None:
    assert frozenset[int]().union(*ARRIVES.values()) == set(MESSAGES)
    assert {(role, state) for role in Role for state in (State.GREETING, State.OPEN)} == set(ARRIVES)


def test_this_version_has_golden_files_for_all_and_no_others() -> None:
    assert {path.stem for path in (GOLDEN / CURRENT).iterdir()} == {name_of(sample) for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=name_of)
def test_encoding_gives_the_golden_bytes(sample: Sample) -> None:
    assert sample.frame() == (GOLDEN / CURRENT / f"{name_of(sample)}.bin").read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sample", SAMPLES, ids=name_of)
def test_golden_bytes_of_every_release_are_still_read(sample: Sample, version: str) -> None:
    path = GOLDEN / version / f"{name_of(sample)}.bin"
    if not path.exists():
        return  # a younger message
    data = memoryview(path.read_bytes())
    header = FrameHeader.unpack(data[:HEADER_BYTES])
    payload_start = HEADER_BYTES + header.meta_length
    received = decode(header, data[HEADER_BYTES:payload_start], data[payload_start:])
    assert received is not None
    assert (received.message, received.epoch, received.number) == (sample.message, sample.epoch, sample.number)
    assert {name: bytes(buffer.data) for name, buffer in received.tensors.items()} == {
        buffer.spec.name: bytes(buffer.data) for buffer in sample.tensors
    }
    assert [buffer.spec for buffer in received.tensors.values()] == [buffer.spec for buffer in sample.tensors]


@pytest.mark.parametrize("message", MESSAGES.values(), ids=lambda message: message.__name__)
def test_no_number_of_a_message_may_be_negative(message: type[Message]) -> None:
    """Every int field down the tree carries a lower bound that the decoder enforces."""
    schema = msgspec.json.schema(message)
    unbounded = [found for found in _ints(schema) if "minimum" not in found]
    assert not unbounded


def _ints(schema: object) -> list[dict[str, object]]:
    if isinstance(schema, list):
        return [found for item in schema for found in _ints(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") == "integer" else []
    return own + [found for value in schema.values() for found in _ints(value)]
