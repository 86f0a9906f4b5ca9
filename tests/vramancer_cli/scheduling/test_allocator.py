"""CacheAllocator: what is there is shared, what is shared is never written, what is held comes back."""

from __future__ import annotations

import pytest

from transport.messages import BlockCopy, WindowGroup
from vramancer_cli.errors import IntegrityError
from vramancer_cli.models.readout import NO_READING, PromptReading
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.allocator import CacheAllocator
from vramancer_cli.scheduling.sequence import Sequence

PROMPT = tuple(range(10))


def allocator(**changes: object) -> CacheAllocator:
    limits: dict[str, object] = {"block_count": 12, "block_tokens": 4}
    return CacheAllocator(**{**limits, **changes})  # type: ignore[arg-type]


def sequence(number: int, prompt: tuple[int, ...] = PROMPT, reading: PromptReading = NO_READING) -> Sequence:
    return Sequence(number, prompt, Sampling(), 8, frozenset(), number, reading)


def begun(a: CacheAllocator, s: Sequence, *running: Sequence) -> Sequence:
    assert a.begin(s, running, 0)
    a.check_integrity((s, *running))
    return s


def computed(a: CacheAllocator, s: Sequence, *running: Sequence) -> Sequence:
    """Begun, and all its tokens came back."""
    begun(a, s, *running)
    count = s.uncached_tokens
    assert a.grow(s, count)
    s.pick(0)
    s.launch(count)
    s.land(count)
    a.keep(s, count)
    s.accept(77)
    return s


def test_full_blocks_outlive_their_sequence_and_are_found_by_the_next() -> None:
    a = allocator()
    first = computed(a, sequence(1))
    blocks = tuple(first.tables[0].blocks)
    a.release(first)
    a.check_integrity(())
    second = begun(a, sequence(2, (*PROMPT[:9], 50, 51)))
    assert tuple(second.tables[0].blocks[:2]) == blocks[:2], "the two full blocks; the third was partial and another"
    assert (second.cached_tokens, second.copies, a.reused_tokens) == (8, (), 8)
    assert a.asked_tokens == 10 + 11


def test_at_least_one_token_runs() -> None:
    a = allocator()
    a.release(computed(a, sequence(1, PROMPT[:8])))
    again = begun(a, sequence(2, PROMPT[:8]))
    assert (again.cached_tokens, again.uncached_tokens) == (4, 4)


def test_another_beginning_finds_nothing_though_the_later_tokens_are_the_same() -> None:
    a = allocator()
    a.release(computed(a, sequence(1)))
    assert begun(a, sequence(2, (99, *PROMPT[1:]))).cached_tokens == 0


def test_what_was_generated_is_found_too() -> None:
    a = allocator()
    first = computed(a, sequence(1, PROMPT[:7]))
    first.launch(1)
    first.land(1)
    a.keep(first, 1)
    a.release(first)
    assert begun(a, sequence(2, (*PROMPT[:7], 77, 5))).cached_tokens == 8


def test_the_same_prompt_is_forked_with_a_copy_of_the_partial_block() -> None:
    a = allocator()
    first = computed(a, sequence(1))
    fork = begun(a, sequence(2), first)
    assert fork.tables[0].blocks[:2] == first.tables[0].blocks[:2]
    assert fork.copies == (BlockCopy(0, first.tables[0].blocks[2], fork.tables[0].blocks[2]),)
    assert fork.cached_tokens == 9
    assert fork.launch(1).blocks == (tuple(fork.tables[0].blocks),)
    assert fork.copies == ()
    a.release(first)
    a.check_integrity((fork,))
    a.release(fork)
    a.check_integrity(())


def test_a_fork_needs_no_prefix_cache_and_no_copy_at_a_blocks_end() -> None:
    a = allocator(prefix_cache=False)
    first = computed(a, sequence(1, PROMPT[:9]))
    fork = begun(a, sequence(2, PROMPT[:9]), first)
    assert (fork.cached_tokens, fork.copies) == (8, ())
    a.release(first)
    a.release(fork)
    assert begun(a, sequence(3, PROMPT[:9])).cached_tokens == 0, "without a cache nothing outlives its sequence"


def test_who_has_the_same_prompt_waits_while_it_is_computed() -> None:
    a = allocator()
    first = begun(a, sequence(1))
    assert a.must_wait(sequence(2), (first,))
    assert not a.must_wait(sequence(2, reading=PromptReading(top_logprobs=0)), (first,))
    assert not a.must_wait(sequence(2, PROMPT[:9]), (first,))
    first.launch(9)
    first.land(9)
    assert not a.must_wait(sequence(2), (first,))


def test_tokens_that_are_to_be_read_run_and_those_read_before_do_not() -> None:
    a = allocator()
    first = computed(a, sequence(1))
    reader = begun(a, sequence(2, reading=PromptReading(pooling="mean")), first)
    assert reader.cached_tokens == 0
    reader.launch(6)
    reader.land(6)
    a.release(reader)
    assert begun(a, reader, first).cached_tokens == 6
    last = begun(a, sequence(3, reading=PromptReading(pooling="last")), first, reader)
    assert last.cached_tokens == 9


def test_a_model_with_state_shares_nothing() -> None:
    a = allocator(state_slots=2)
    first = computed(a, sequence(1))
    assert not a.must_wait(sequence(2), (first,))
    second = begun(a, sequence(2), first)
    assert (second.cached_tokens, second.copies) == (0, ())
    assert not a.begin(sequence(3), (first, second), 0), "there is no third slot"
    a.release(first)
    assert begun(a, sequence(3), second).cached_tokens == 0


def test_kept_blocks_that_are_shared_are_not_counted_as_free() -> None:
    a = allocator(block_count=4)
    a.release(computed(a, sequence(1, PROMPT[:8])))
    assert not a.begin(sequence(2, (*PROMPT[:8], *range(20, 29))), (), 0), "two kept and two free for five"
    assert a.begin(sequence(3, (*PROMPT[:8], *range(20, 28))), (), 0)


def test_integrity_finds_a_sequence_that_would_write_where_others_read() -> None:
    a = allocator()
    first = computed(a, sequence(1))
    second = begun(a, sequence(2), first)
    second.cached_tokens = 7
    with pytest.raises(IntegrityError, match="Sequence 2 would write into block"):
        a.check_integrity((first, second))
    second.launched_tokens = 13
    with pytest.raises(IntegrityError, match="do not match its tokens"):
        a.check_integrity((first, second))


# --- windows --------------------------------------------------------------------------------------------------------

LONG = tuple(range(40))


def windowed(more_blocks: int = 20) -> CacheAllocator:
    """Beside 40 blocks for all tokens, a window of 3 tokens: of it a sequence holds 16 blocks of 4 at most."""
    return allocator(block_count=40, windows=(WindowGroup(3, 16 + more_blocks),), max_step_tokens=40)


def decoded(a: CacheAllocator, s: Sequence, count: int) -> Sequence:
    for _ in range(count):
        s.max_tokens += 1
        assert a.grow(s, 1)
        s.launch(1)
        s.land(1)
        a.keep(s, 1)
        s.accept(7)
    return s


def test_a_prefix_needs_only_its_last_window_and_the_prefix_is_then_shared_in_every_group() -> None:
    a = windowed()
    first = decoded(a, computed(a, sequence(1, LONG)), 30)
    assert (first.tables[1].first, first.tables[1].end) == (12, 18)
    second = begun(a, sequence(2, (*LONG, 99)), first)
    assert second.cached_tokens == 40
    assert second.tables[0].blocks[:10] == first.tables[0].blocks[:10]
    assert (second.tables[1].first, len(second.tables[1].blocks)) == (9, 1)
    a.release(first)
    a.release(second)
    a.check_integrity(())


def test_a_prefix_that_only_one_group_still_has_is_computed_again() -> None:
    a = windowed(0)
    a.release(decoded(a, computed(a, sequence(1, LONG)), 30))
    fresh = computed(a, sequence(2, tuple(range(100, 140))))
    a.release(decoded(a, fresh, 24))
    assert begun(a, sequence(3, (*LONG, 99))).cached_tokens < 40


def test_a_fork_copies_its_part_of_a_block_in_every_group() -> None:
    a = windowed()
    first = computed(a, sequence(1))
    fork = begun(a, sequence(2), first)
    pairs = zip(first.tables, fork.tables, strict=True)
    assert fork.copies == tuple(
        BlockCopy(group, one.between(2, 3)[0], other.between(2, 3)[0]) for group, (one, other) in enumerate(pairs)
    )
    assert a.grow(fork, 1)
    assert fork.launch(1).first_block == (0, 1), "position 7 is the first that it may see"


def test_a_prompt_waits_until_the_window_has_room_for_it() -> None:
    a = windowed(1)
    first = computed(a, sequence(1, LONG))
    assert not a.begin(sequence(2, tuple(range(50, 90))), (first,), 0)
    decoded(a, first, 30)
    assert begun(a, sequence(3, tuple(range(50, 90))), first)
