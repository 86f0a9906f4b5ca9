"""Roster: admission in order, growth at the expense of younger sequences only, ends told once."""

from __future__ import annotations

import pytest

from vramancer_cli.errors import IntegrityError, QueueFullError
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.allocator import CacheAllocator
from vramancer_cli.scheduling.roster import Roster
from vramancer_cli.scheduling.sequence import Sequence


def roster(block_count: int = 6, max_running: int = 4, max_waiting: int = 4, state_slots: int = 0) -> Roster:
    allocator = CacheAllocator(block_count=block_count, block_tokens=2, state_slots=state_slots)
    return Roster(allocator, max_running=max_running, max_waiting=max_waiting)


def queued(roster: Roster, arrival: int, prompt_tokens: int, priority: int = 0) -> Sequence:
    """Each with a prompt of its own, so that nothing is shared."""
    prompt = tuple(range(100 * arrival, 100 * arrival + prompt_tokens))
    sequence = Sequence(100 + arrival, prompt, Sampling(), 8, frozenset(), arrival, priority=priority)
    roster.queue(sequence)
    return sequence


def fill(sequence: Sequence) -> None:
    """As if all its tokens had run, and one more had been sampled."""
    sequence.pick(0)
    sequence.launch(sequence.uncached_tokens)
    sequence.land(sequence.uncached_tokens)
    sequence.accept(1)


def test_admission_is_strictly_in_order() -> None:
    r = roster(block_count=6)
    first, large, small = queued(r, 0, 4), queued(r, 1, 10), queued(r, 2, 1)
    assert r.admit() is first
    assert r.admit() is None, "the small one must not pass the large one"
    assert r.waiting == [large, small]


def test_admission_leaves_a_block_for_each_running_sequence() -> None:
    r = roster(block_count=3)
    queued(r, 0, 4)
    queued(r, 1, 2)
    assert r.admit() is not None
    assert r.admit() is None, "one block is free, but the first will need it"


def test_max_running_bounds_admission() -> None:
    r = roster(max_running=1)
    queued(r, 0, 1)
    queued(r, 1, 1)
    assert r.admit() is not None
    assert r.admit() is None


def test_a_full_queue_is_refused_with_a_hint() -> None:
    r = roster(max_waiting=1)
    queued(r, 0, 1)
    with pytest.raises(QueueFullError, match="1 requests are waiting") as caught:
        queued(r, 1, 1)
    assert caught.value.hint


def test_growth_takes_from_the_youngest_and_puts_it_back_in_order() -> None:
    r = roster(block_count=6)
    old, middle, young, newcomer = (queued(r, arrival, 2) for arrival in range(4))
    assert [r.admit(), r.admit(), r.admit()] == [old, middle, young]
    for sequence in (old, middle, young):
        fill(sequence)
    assert r.grow(old, 1)
    assert r.grow(middle, 1)
    assert r.grow(young, 1)
    assert r.waiting == [newcomer]
    fill(middle)
    fill(middle)
    assert r.grow(middle, 1)
    assert r.waiting == [young, newcomer]
    assert r.take_ended() == (young.id,)
    assert r.take_ended() == ()
    r.check_integrity()


def test_growth_never_takes_from_the_older_or_from_one_in_flight() -> None:
    r = roster(block_count=4)
    old, young = queued(r, 0, 2), queued(r, 1, 4)
    assert [r.admit(), r.admit()] == [old, young]
    fill(old)
    fill(young)
    assert r.grow(old, 1)
    assert not r.grow(young, 1), "the only other one is older"
    fill(old)
    fill(old)
    young.in_flight = 1
    assert not r.grow(old, 1)
    young.in_flight = 0
    assert r.grow(old, 1)
    assert r.waiting == [young]


def test_age_decides_who_is_taken_from_and_outlives_preemption() -> None:
    r = roster(block_count=5)
    old, middle, young = (queued(r, arrival, 2) for arrival in range(3))
    assert [r.admit(), r.admit(), r.admit()] == [old, middle, young]
    grow_until_somebody_waits(r, old)
    assert r.waiting == [young]
    r.remove(old)
    late = queued(r, 3, 1)
    assert [r.admit(), r.admit()] == [young, late]
    late.in_flight = 1
    grow_until_somebody_waits(r, middle)
    assert r.waiting == [young]
    r.remove(middle)
    late.in_flight = 0
    assert r.admit() is young
    assert list(r.running.values()) == [late, young]
    assert r.grounded() == [young, late]


def grow_until_somebody_waits(r: Roster, sequence: Sequence) -> None:
    while not r.waiting:
        fill(sequence)
        assert r.grow(sequence, 1)


def test_the_end_of_a_sequence_that_no_stage_knows_is_not_told() -> None:
    r = roster()
    sequence, waiting = queued(r, 0, 2), queued(r, 1, 2)
    r.admit()
    r.remove(sequence)
    r.remove(waiting)
    assert not r.has_ended
    assert (r.running, r.waiting) == ({}, [])


def test_integrity_finds_a_table_that_is_too_short_and_a_waiting_owner() -> None:
    r = roster()
    queued(r, 0, 4)
    sequence = r.admit()
    assert sequence is not None
    r.check_integrity()
    sequence.launched_tokens = 5
    with pytest.raises(IntegrityError, match="do not match its tokens"):
        r.check_integrity()
    sequence.launched_tokens = 0
    queued(r, 1, 4).cached_tokens = 1
    with pytest.raises(IntegrityError, match="waiting sequence holds"):
        r.check_integrity()


def test_a_model_with_state_admits_no_more_sequences_than_it_has_slots() -> None:
    r = roster(block_count=20, state_slots=2)
    first, second, third = (queued(r, arrival, 2) for arrival in range(3))
    assert [r.admit(), r.admit(), r.admit()] == [first, second, None]
    assert {first.state_slot, second.state_slot} == {0, 1}
    r.check_integrity()
    r.remove(first)
    assert r.admit() is third
    assert third.state_slot == 0
    r.check_integrity()


def test_integrity_finds_a_state_slot_that_two_own() -> None:
    r = roster(block_count=20, state_slots=2)
    first, second = queued(r, 0, 2), queued(r, 1, 2)
    r.admit()
    r.admit()
    second.state_slot = first.state_slot
    with pytest.raises(IntegrityError, match="Block 0 has 1 users, and is in 2 tables"):
        r.check_integrity()


def test_a_higher_priority_is_admitted_first_and_yields_last() -> None:
    r = roster(block_count=6)
    low, high, late = queued(r, 0, 2, priority=-1), queued(r, 1, 2, priority=1), queued(r, 2, 2)
    assert r.waiting == [high, late, low]
    assert [r.admit(), r.admit(), r.admit()] == [high, late, low]
    grow_until_somebody_waits(r, late)
    assert r.waiting == [low], "the oldest, but of the lowest priority"
    r.remove(low)
    grow_until_somebody_waits(r, high)
    assert r.waiting == [late]
    r.check_integrity()


def test_the_second_with_a_prompt_waits_for_the_first_and_nobody_passes_it() -> None:
    r = roster(block_count=20)
    first, second, other = queued(r, 0, 3), queued(r, 0, 3), queued(r, 1, 1)
    assert r.admit() is first
    assert r.admit() is None
    first.launch(3)
    r.land(first, 3)
    assert [r.admit(), r.admit()] == [second, other]
    assert second.cached_tokens == 2
