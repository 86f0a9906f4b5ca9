"""What the next payload gets is memory that nobody looks at any more, and never other memory."""

from __future__ import annotations

import numpy as np
import pytest

from transport import warm_memory
from transport.warm_memory import LEAST_BYTES, WarmMemory


def test_memory_is_used_again_once_every_view_of_it_is_gone() -> None:
    memory = WarmMemory()
    first = memory(LEAST_BYTES)
    kept, part = first.obj, first[100:200]
    del first
    array = np.frombuffer(part, dtype=np.uint8)
    del part
    kept_id = id(kept)
    del kept
    other = memory(LEAST_BYTES)
    assert id(other.obj) != kept_id, "an array still lies on it"
    del array
    assert id(memory(LEAST_BYTES).obj) == kept_id


def test_views_that_are_held_never_share_memory() -> None:
    memory = WarmMemory()
    held = [memory(LEAST_BYTES) for _ in range(200)]
    for number, view in enumerate(held):
        view[:] = bytes([number]) * LEAST_BYTES
    assert all(view[0] == view[-1] == number for number, view in enumerate(held))


def test_a_smaller_payload_gets_exactly_its_bytes_and_no_memory_that_is_far_too_large() -> None:
    memory = WarmMemory()
    large = id(memory(2 * LEAST_BYTES).obj)
    near = memory(2 * LEAST_BYTES - 5)
    assert len(near) == 2 * LEAST_BYTES - 5 and id(near.obj) == large
    larger = id(memory(4 * LEAST_BYTES).obj)
    assert id(memory(LEAST_BYTES).obj) not in (large, larger)


def test_what_lies_unused_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_memory, "MOST_KEPT_BYTES", 3 * LEAST_BYTES)
    memory = WarmMemory()
    held = [memory(LEAST_BYTES) for _ in range(8)]
    assert sum(map(len, memory._kept)) == 3 * LEAST_BYTES < sum(map(len, held))
    assert len(memory(4 * LEAST_BYTES)) == 4 * LEAST_BYTES


def test_small_payloads_are_the_heaps() -> None:
    memory = WarmMemory()
    assert len(memory(LEAST_BYTES - 1)) == LEAST_BYTES - 1 and len(memory(0)) == 0
    assert memory._kept == []
