"""A sample of what `make fuzz` feeds the frame parser, and that the fuzzer notices a broken one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fuzz import frames
from fuzz.drafts import valid_draft
from fuzz.findings import BrokenPromiseError, HangError, deadline
from fuzz.mutation import pack, spoil_packed
from transport import codec, connection
from transport.codec import decode
from transport.connection import Role, State
from transport.contracts import TensorBuffer
from transport.framing import FrameHeader, FrameParser, Limits
from transport.messages import MESSAGES

SEED = 20261121


def test_a_sample_of_frames_finds_nothing(tmp_path: Path) -> None:
    tally = frames.run(4000, SEED, tmp_path, progress=lambda _: None)
    assert not tally.findings and not list(tmp_path.iterdir())
    assert tally.done >= 4000 and tally.kinds["taken"] > 1000 and tally.kinds["RemoteProtocolError"] > 500


def test_a_case_follows_from_its_seed_and_number() -> None:
    assert frames.make_case(SEED, 5) == frames.make_case(SEED, 5) != frames.make_case(SEED, 6)


@pytest.mark.parametrize("type_id", sorted(MESSAGES))
def test_the_generator_makes_valid_frames_of_every_message_type(type_id: int) -> None:
    for seed in range(50):
        draft = valid_draft(type_id, random.Random(seed))
        received = decode(FrameHeader.unpack(draft.pack()[:64]), draft.meta, memoryview(draft.payload))
        assert received is not None and type(received.message) is MESSAGES[type_id]


def test_the_writer_of_odd_msgpack_means_what_it_was_given() -> None:
    tree = {"a": [1, -5, 2**40, "text", None, True, 1.5, b"x"], "b": {"c": list(range(40))}}
    for seed in range(50):
        assert msgspec.msgpack.decode(pack(tree, random.Random(seed), 0.5)) == tree


def test_spoiling_reaches_values_and_keys_and_structure() -> None:
    data = msgspec.msgpack.encode([{"number": 1}, []])
    assert len({spoil_packed(data, random.Random(seed)) for seed in range(300)}) > 100


def _forgetting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrameParser, "advance", lambda parser, count: parser._advance(count))


def _any_table(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "_cut", lambda table, payload: {})


def _any_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "_check_message", lambda header, message: None)


def _any_size(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(connection._LIMITS, Role.DATA_RECEIVER, Limits(1 << 20, 1 << 63))  # pyright: ignore[reportPrivateUsage]


def _any_order(patch: pytest.MonkeyPatch) -> None:
    everything = {place: frozenset(MESSAGES) for place in connection.ARRIVES}
    patch.setattr(connection, "ARRIVES", everything | {(role, State.CLOSED): frozenset(MESSAGES) for role in Role})


def _unnamed(patch: pytest.MonkeyPatch) -> None:
    def fails(table: object, payload: memoryview) -> dict[str, TensorBuffer]:
        raise OverflowError("nobody foresaw this")

    patch.setattr(codec, "_cut", fails)


@pytest.mark.parametrize("broken", [_forgetting, _any_table, _any_step, _any_size, _any_order, _unnamed])
def test_a_broken_guard_is_found_written_down_and_repeated(
    broken: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken(patch)
        tally = frames.run(6000, SEED, tmp_path, progress=lambda _: None)
        assert tally.findings
        finding = tally.findings[0]
        assert finding.command.startswith(f"python -m fuzz frames --seed {SEED} --case ")
        assert any(path.read_bytes() == finding.data for path in tmp_path.glob("frames-*.bin"))
        with pytest.raises(Exception, match=r".") as repeated:
            frames.replay(finding.data)
        assert type(repeated.value).__name__ in finding.what
    frames.replay(finding.data)


def test_memory_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []

    def keeping(case: frames.Case, rng: random.Random) -> frames.Outcome:
        kept.append(bytearray(10 << 20))
        return frames.Outcome((), None)

    monkeypatch.setattr(frames, "check", keeping)
    with pytest.raises(BrokenPromiseError, match="bytes of heap"):
        frames.check_heap(frames.make_case(SEED, 1), random.Random(1))


def test_a_case_that_hangs_is_found() -> None:
    with pytest.raises(HangError), deadline(0.05):
        while True:
            pass
