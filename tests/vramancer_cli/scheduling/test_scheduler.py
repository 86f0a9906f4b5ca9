"""Scheduler: what goes into a step, what comes out of it, and every way that a request can end."""

from __future__ import annotations

import msgspec
import pytest

from transport.messages import StepRow, WindowGroup
from vramancer_cli.errors import InvalidRequestError, QueueFullError
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.readout import Pooling, PromptReading
from vramancer_cli.models.sampling import Draw, Sampling
from vramancer_cli.scheduling.overlap import Overlap
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import Emitted, Scheduled, StepMismatchError


def scheduler(**changes: object) -> Scheduler:
    limits: dict[str, object] = {"epoch": 3, "block_count": 16, "block_tokens": 4, "max_step_tokens": 16}
    return Scheduler(**{**limits, **changes})  # type: ignore[arg-type]


def add(s: Scheduler, sequence: int, prompt_tokens: int = 3, max_tokens: int = 8, stops: tuple[int, ...] = ()) -> None:
    prompt = tuple(range(100 * sequence, 100 * sequence + prompt_tokens))
    s.add(sequence, prompt, Sampling(seed=sequence), max_tokens, frozenset(stops))


def start(s: Scheduler) -> Scheduled:
    scheduled = s.schedule(now=1.0)
    assert scheduled is not None
    s.check_integrity()
    return scheduled


def finish(s: Scheduler, scheduled: Scheduled, token: int = 50) -> tuple[Emitted, ...]:
    emitted = s.commit(scheduled.step, [token] * len(scheduled.sampled), now=2.0)
    s.check_integrity()
    return emitted


def counts(scheduled: Scheduled) -> dict[int, int]:
    return {row.sequence: row.count for row in scheduled.step.rows}


def test_a_request_from_first_to_last_token() -> None:
    s = scheduler()
    add(s, 7, prompt_tokens=3, max_tokens=2)
    assert (s.running, s.waiting, s.idle) == (0, 1, False)
    first = start(s)
    assert (first.step.epoch, first.step.number, first.step.ended) == (3, 0, ())
    assert first.step.rows == (StepRow(7, 0, 3, (0,), ((0,),), outputs=1),)
    assert (first.token_ids, first.sampled) == ((700, 701, 702), (7,))
    assert first.draws == (Draw(Sampling(seed=7), 0),)
    assert finish(s, first, token=50) == (Emitted(7, (50,), None),)
    second = start(s)
    assert second.step.rows == (StepRow(7, 3, 1, (1,), ((),), outputs=1),)
    assert (second.token_ids, second.draws) == ((50,), (Draw(Sampling(seed=7), 1),))
    assert finish(s, second, token=51) == (Emitted(7, (51,), "length"),)
    assert (s.running, s.waiting, s.idle) == (0, 0, False), "the stages do not know of the end yet"


def test_the_last_end_goes_out_in_a_step_without_rows() -> None:
    s = scheduler()
    add(s, 7, max_tokens=1)
    finish(s, start(s))
    flush = start(s)
    assert (flush.step.rows, flush.step.ended, flush.token_ids, flush.draws) == ((), (7,), (), ())
    assert s.schedule(1.0) is None
    assert finish(s, flush) == ()
    assert s.idle
    assert s.schedule(1.0) is None


def test_ends_ride_on_the_next_rows_and_wait_for_them() -> None:
    s = scheduler(overlap=Overlap(2, 2))
    add(s, 1)
    add(s, 2)
    finish(s, start(s))
    one, two = start(s), start(s)
    finish(s, one)
    s.abort(1)
    assert s.schedule(1.0) is None, "a step without rows is not worth a trip while one with rows will follow"
    finish(s, two)
    assert start(s).step.ended == (1,)


def test_a_stop_token_ends_the_request_and_is_not_emitted() -> None:
    s = scheduler()
    add(s, 7, stops=(50,))
    assert finish(s, start(s), token=50) == (Emitted(7, (), "stop"),)
    assert s.running == 0


def test_a_long_prompt_is_cut_into_chunks() -> None:
    s = scheduler(max_step_tokens=4)
    add(s, 7, prompt_tokens=10)
    seen: list[tuple[int, int, int]] = []
    for _ in range(3):
        scheduled = start(s)
        seen += [(row.start, row.count, row.outputs) for row in scheduled.step.rows]
        emitted = finish(s, scheduled)
    assert seen == [(0, 4, 0), (4, 4, 0), (8, 2, 1)]
    assert emitted == (Emitted(7, (50,), None),)


def test_decodes_and_prompts_share_a_step() -> None:
    s = scheduler(max_step_tokens=8)
    add(s, 1)
    add(s, 2)
    finish(s, start(s))
    add(s, 3, prompt_tokens=20)
    mixed = start(s)
    assert counts(mixed) == {1: 1, 2: 1, 3: 6}
    assert mixed.sampled == (1, 2)


def test_decodes_leave_a_waiting_prompt_a_share_and_take_turns() -> None:
    s = scheduler(max_step_tokens=4, block_count=64)
    for sequence in range(4):
        add(s, sequence, prompt_tokens=1)
    finish(s, start(s))
    whole = start(s)
    assert counts(whole) == {0: 1, 1: 1, 2: 1, 3: 1}
    finish(s, whole)
    add(s, 4, prompt_tokens=6)
    seen: list[list[int]] = []
    for _ in range(4):
        scheduled = start(s)
        seen.append(list(counts(scheduled)))
        finish(s, scheduled)
    assert seen == [[0, 1, 2, 4], [3, 0, 1, 4], [2, 3, 0, 4], [1, 2, 3, 4]]


def test_decodes_are_divided_among_the_steps_in_flight() -> None:
    s = scheduler(overlap=Overlap(3, 3))
    for sequence in range(7):
        add(s, sequence)
    finish(s, start(s))  # 5 prompts of 3 fit into 16 tokens, the 6th in part
    finish(s, start(s))
    first, second, third = (counts(start(s)) for _ in range(3))
    assert [len(first), len(second), len(third)] == [3, 2, 2]
    assert not first.keys() & second.keys() and not second.keys() & third.keys()
    assert s.schedule(1.0) is None, "three steps are in flight"


def test_a_crowd_that_came_together_is_divided_again() -> None:
    s = scheduler(block_count=64, overlap=Overlap(2, 2))
    add(s, 0)
    alone = start(s)
    for sequence in range(1, 6):
        add(s, sequence)
    crowd = start(s)
    assert [len(alone.step.rows), len(crowd.step.rows)] == [1, 5]
    finish(s, crowd)
    half = start(s)
    finish(s, alone)
    assert [len(half.step.rows), len(start(s).step.rows)] == [3, 3]


def test_the_next_chunk_of_a_prompt_does_not_wait_for_the_last() -> None:
    s = scheduler(max_step_tokens=4, overlap=Overlap(2, 3))
    add(s, 7, prompt_tokens=10)
    steps = [start(s), start(s), start(s)]
    assert [(row.start, row.count, row.outputs) for step in steps for row in step.step.rows] == [
        (0, 4, 0), (4, 4, 0), (8, 2, 1)
    ]  # fmt: skip
    assert s.schedule(1.0) is None
    assert [finish(s, step) for step in steps] == [(), (), (Emitted(7, (50,), None),)]
    assert counts(start(s)) == {7: 1}


def test_decodes_slip_in_between_the_chunks_of_a_prompt() -> None:
    s = scheduler(max_step_tokens=4, overlap=Overlap(2, 3))
    add(s, 1)
    finish(s, start(s))
    add(s, 2, prompt_tokens=12)
    first, second, third = (start(s) for _ in range(3))
    assert [counts(first), counts(second), counts(third)] == [{1: 1, 2: 3}, {2: 4}, {2: 4}]
    finish(s, first)
    assert counts(start(s)) == {1: 1, 2: 1}


def test_an_aborted_prompt_takes_all_its_chunks_with_it() -> None:
    s = scheduler(max_step_tokens=4, overlap=Overlap(2, 3))
    add(s, 1, prompt_tokens=12)
    first, second = start(s), start(s)
    s.abort(1)
    assert (finish(s, first), finish(s, second)) == ((), ())
    assert s.running == 0


def test_a_sequence_in_flight_is_not_scheduled_again() -> None:
    s = scheduler(overlap=Overlap(2, 2))
    add(s, 1)
    start(s)
    assert s.schedule(1.0) is None


def test_an_aborted_sequence_gives_its_blocks_to_the_next_step() -> None:
    s = scheduler(block_count=4, overlap=Overlap(2, 2))
    add(s, 1, prompt_tokens=14, max_tokens=2)
    first = start(s)
    add(s, 2, prompt_tokens=14, max_tokens=2)
    assert s.schedule(1.0) is None
    s.abort(1)
    second = start(s)
    assert second.step.ended == (1,)
    assert second.step.rows[0].blocks == first.step.rows[0].blocks
    assert finish(s, first) == (), "nobody wants this token any more"
    assert finish(s, second) == (Emitted(2, (50,), None),)


def test_an_id_used_again_does_not_get_the_old_result() -> None:
    s = scheduler(overlap=Overlap(2, 2))
    add(s, 1, max_tokens=1)
    old = start(s)
    s.abort(1)
    add(s, 1, max_tokens=1)
    new = start(s)
    assert new.step.ended == (1,)
    assert finish(s, old, token=60) == ()
    assert finish(s, new, token=61) == (Emitted(1, (61,), "length"),)


def test_abort_of_a_waiting_or_unknown_sequence_tells_nobody() -> None:
    s = scheduler()
    add(s, 1)
    s.abort(1)
    s.abort(99)
    assert s.idle
    assert s.schedule(1.0) is None


def test_preemption_recomputes_the_newest_and_repeats_nothing() -> None:
    s = scheduler(block_count=5, block_tokens=2, prefix_cache=False)
    add(s, 1, prompt_tokens=3, max_tokens=6)
    add(s, 2, prompt_tokens=1, max_tokens=6)
    emitted: dict[int, list[int]] = {1: [], 2: []}
    again: list[StepRow] = []
    for number in range(100, 120):
        if s.idle:
            break
        scheduled = start(s)
        again += [row for row in scheduled.step.rows if row.sequence == 2 and row.first_block == (0,)]
        for item in finish(s, scheduled, token=number):
            emitted[item.sequence] += item.token_ids
    assert len(again) == 2
    assert again[1].start == 0 and again[1].count > 1, "prompt and generated tokens run again"
    assert len(emitted[1]) == len(emitted[2]) == 6
    assert emitted[2] == sorted(set(emitted[2]))
    assert s.idle


def test_a_request_that_fills_the_whole_pool_runs() -> None:
    s = scheduler(block_count=2, block_tokens=2)
    add(s, 1, prompt_tokens=1, max_tokens=3)
    assert [item.finish_reason for _ in range(3) for item in finish(s, start(s))] == [None, None, "length"]


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "param"), [(0, 1, "prompt"), (1, 0, "max_tokens"), (60, 5, "max_tokens")]
)
def test_impossible_requests_are_refused(prompt_tokens: int, max_tokens: int, param: str) -> None:
    s = scheduler()
    with pytest.raises(InvalidRequestError) as caught:
        add(s, 1, prompt_tokens, max_tokens)
    assert caught.value.param == param
    assert s.idle


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    s = scheduler(max_waiting=1)
    add(s, 1)
    with pytest.raises(QueueFullError):
        add(s, 2)
    assert s.waiting == 1
    start(s)
    add(s, 2)


def test_an_id_in_use_is_refused() -> None:
    s = scheduler()
    add(s, 1)
    with pytest.raises(ValueError, match="Sequence 1 is here already"):
        add(s, 1)


def test_results_that_do_not_match_are_refused_and_change_nothing() -> None:
    s = scheduler()
    add(s, 1)
    scheduled = start(s)
    with pytest.raises(StepMismatchError, match="draws 1 tokens, 2 came"):
        s.commit(scheduled.step, [1, 2], 0.0)
    with pytest.raises(StepMismatchError, match="Step 0 of epoch 4 is not in flight"):
        s.commit(msgspec.structs.replace(scheduled.step, epoch=4), [1], 0.0)
    assert finish(s, scheduled) == (Emitted(1, (50,), None),)
    with pytest.raises(StepMismatchError, match="Step 0 of epoch 3 is not in flight"):
        finish(s, scheduled)


def test_times_come_from_the_caller() -> None:
    s = scheduler()
    add(s, 1)
    scheduled = s.schedule(now=13.0)
    assert scheduled is not None
    s.commit(scheduled.step, [1], now=13.5)
    assert s.last_step_s == 0.5


@pytest.mark.parametrize(
    "limits", [{"max_step_tokens": 1}, {"max_running": 0}, {"overlap": Overlap(0)}, {"overlap": Overlap(2, 0)}]
)
def test_limits_that_could_not_make_progress_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        scheduler(**limits)


def test_answers_to_one_prompt_compute_it_once() -> None:
    s = scheduler(prefix_cache=False)
    for sequence in range(3):
        s.add(sequence, tuple(range(7)), Sampling(seed=sequence), 4, frozenset())
    first = start(s)
    assert counts(first) == {0: 7}
    finish(s, first)
    second = start(s)
    assert counts(second) == {0: 1, 1: 1, 2: 1}
    assert second.token_ids == (50, 6, 6)
    assert [row.start for row in second.step.rows] == [7, 6, 6]
    assert [(copy.group, copy.source) for copy in second.step.copies] == [(0, 1), (0, 1)]
    assert s.reused_tokens == 12
    while not s.idle:
        finish(s, second if second is not None else start(s))
        second = None
    s.check_integrity()


def test_a_preempted_sequence_finds_what_is_left_of_its_blocks() -> None:
    s = scheduler(block_count=8, block_tokens=2)
    add(s, 1, prompt_tokens=5, max_tokens=7)
    add(s, 2, prompt_tokens=5, max_tokens=7)
    starts: list[int] = []
    while not s.idle:
        scheduled = start(s)
        starts += [row.start for row in scheduled.step.rows if row.sequence == 2 and row.first_block == (0,)]
        finish(s, scheduled)
    assert len(starts) == 2 and starts[1] > 0
    assert s.reused_tokens == starts[1]


def test_a_higher_priority_goes_before_those_that_wait() -> None:
    s = scheduler(max_running=1)
    add(s, 1)
    finish(s, start(s))
    add(s, 2)
    s.add(3, (1, 2), Sampling(), 2, frozenset(), priority=5)
    s.abort(1)
    assert list(counts(start(s))) == [3]


def test_a_prompt_that_is_computed_again_is_read_once() -> None:
    s = scheduler(block_count=6, block_tokens=2, max_step_tokens=2)
    prompt = (10, 11, 12, 13, 14, 15)
    s.add(1, (1, 2, 3), Sampling(), 8, frozenset())
    s.add(2, prompt, Sampling(), 1, frozenset(), PromptReading(top_logprobs=4))
    targets: list[int] = []
    thrown_out = finished = False
    while (scheduled := s.schedule(0.0)) is not None:
        thrown_out |= 2 in scheduled.step.ended and not finished
        for readout in scheduled.readouts:
            if readout.sequence == 2:
                assert readout.top_logprobs == 4 and len(readout.targets) <= readout.outputs
                targets += readout.targets
        emitted = s.commit(scheduled.step, [50] * len(scheduled.draws), 0.0)
        finished |= any(item.sequence == 2 and item.finish_reason is not None for item in emitted)
        s.check_integrity()
    assert thrown_out and finished
    assert tuple(targets) == prompt[1:]


@pytest.mark.parametrize(("pooling", "outputs"), [("mean", [2, 2, 1]), ("last", [0, 0, 1])])
def test_a_prompt_may_be_pooled_and_nothing_is_drawn(pooling: Pooling, outputs: list[int]) -> None:
    s = scheduler(max_step_tokens=2)
    s.add(1, (1, 2, 3, 4, 5), Sampling(), 0, frozenset(), PromptReading(pooling=pooling))
    for wanted in outputs:
        scheduled = s.schedule(0.0)
        assert scheduled is not None
        assert [row.outputs for row in scheduled.step.rows] == [wanted]
        assert [readout.pooled for readout in scheduled.readouts] == [True] * bool(wanted)
        emitted = s.commit(scheduled.step, [], 0.0)
    assert emitted == (Emitted(1, (), "length"),)
    flush = s.schedule(0.0)
    assert flush is not None and flush.step.ended == (1,)


def said(s: Scheduler, sequence: int, *tokens: int) -> Scheduled:
    """The step that follows when a sequence has said these tokens, one after the other."""
    scheduled = start(s)
    for token in tokens:
        drawn = [token if item == sequence else 900 for item in scheduled.sampled]
        s.commit(scheduled.step, drawn, now=2.0)
        s.check_integrity()
        scheduled = start(s)
    return scheduled


def test_guesses_ride_behind_a_decode_and_stay_up_to_the_first_that_is_wrong() -> None:
    s = scheduler(draft=3)
    add(s, 1, prompt_tokens=8)
    drafting = said(s, 1, 102, 103)
    [row] = drafting.step.rows
    assert (drafting.token_ids, row.start, row.count, row.outputs) == ((103, 104, 105, 106), 9, 4, 4)
    assert drafting.draws == tuple(Draw(Sampling(seed=1), 2 + place) for place in range(4))
    with pytest.raises(StepMismatchError, match="draws 4 tokens, 1 came"):
        s.commit(drafting.step, [104], 2.0)
    assert s.commit(drafting.step, [104, 105, 50, 51], 2.0) == (Emitted(1, (104, 105, 50), None, drafted=3, right=2),)
    s.check_integrity()
    after = start(s)
    [row] = after.step.rows
    assert (after.token_ids, row.start, row.count, row.outputs) == ((50,), 12, 1, 1), "the wrong one is taken back"


def test_a_guess_behind_the_end_is_nobodys() -> None:
    s = scheduler(draft=3)
    add(s, 1, prompt_tokens=8, max_tokens=5)
    drafting = said(s, 1, 102, 103)
    assert drafting.step.rows[0].count == 3, "no more than three tokens may follow, one of them undrafted"
    [emitted] = s.commit(drafting.step, [104, 105, 106], 2.0)
    assert emitted == Emitted(1, (104, 105, 106), "length", drafted=2, right=2)
    stopping = scheduler(draft=3)
    add(stopping, 1, prompt_tokens=8, stops=(105,))
    drafting = said(stopping, 1, 102, 103)
    [emitted] = stopping.commit(drafting.step, [104, 105, 106, 9], 2.0)
    assert emitted == Emitted(1, (104,), "stop", drafted=3, right=3)
    stopping.check_integrity()


def test_guesses_take_no_block_that_another_may_want_and_no_place_of_a_prompt() -> None:
    s = scheduler(draft=8, block_count=4, block_tokens=4)
    add(s, 1, prompt_tokens=8)
    drafting = said(s, 1, 102, 103)
    assert drafting.step.rows[0].count == 3, "up to the end of the third block: the fourth stays free"
    s = scheduler(draft=8, max_step_tokens=8)
    add(s, 1, prompt_tokens=8, max_tokens=30)
    drafting = said(s, 1, 102, 103)
    assert counts(drafting) == {1: 8}
    s.commit(drafting.step, [104, 105, 106, 107, 102, 103, 104, 105], 2.0)
    add(s, 2, prompt_tokens=9)
    assert counts(start(s)) == {1: 1, 2: 7}


@pytest.mark.parametrize("changes", [{"draft": 0}, {"state_slots": 2}])
def test_nothing_is_guessed_where_it_is_off_or_could_not_be_taken_back(changes: dict[str, int]) -> None:
    s = scheduler(**{"draft": 3, **changes})
    add(s, 1, prompt_tokens=8)
    assert counts(said(s, 1, 102, 103)) == {1: 1}


def test_a_row_whose_prompt_is_still_read_has_no_guesses() -> None:
    s = scheduler(draft=3)
    s.add(1, (1, 2, 3, 1, 2), Sampling(), 4, frozenset(), PromptReading(top_logprobs=0))
    first = start(s)
    assert (first.readouts[0].outputs, len(first.draws)) == (5, 1)
    assert s.commit(first.step, [3], 2.0) == (Emitted(1, (3,), None),)
    assert counts(start(s)) == {1: 3}, "one less than may still come"


def crowded_window() -> Scheduler:
    """Three decodes, and a prompt of 60 tokens before them in rank, in a window's group that has too few for all."""
    least = most_held_blocks(3, 8, 1)
    s = scheduler(block_count=400, block_tokens=1, max_step_tokens=8, windows=(WindowGroup(3, least + 9),))
    for sequence in (1, 2, 3):
        add(s, sequence, prompt_tokens=1, max_tokens=60)
    finish(s, start(s))
    s.add(9, tuple(range(60)), Sampling(), 5, frozenset(), priority=1)
    return s


def test_a_prompt_that_lacks_window_blocks_goes_before_those_of_lower_rank_in_the_next_step() -> None:
    s = crowded_window()
    while 9 in counts(scheduled := start(s)):
        finish(s, scheduled)
    assert counts(scheduled).keys() == {1, 2}, "they had their rows before the prompt's turn came"
    finish(s, scheduled)
    made_way = start(s)
    assert counts(made_way) == {9: 8}
    assert made_way.step.ended == (2,), "the lowest in rank yields, the other stays grounded"
    finish(s, made_way)
    ended: list[int] = []
    while (scheduled := s.schedule(1.0)) is not None:
        ended += [item.sequence for item in finish(s, scheduled) if item.finish_reason]
    assert sorted(ended) == [1, 2, 3, 9]


def test_nobody_makes_way_for_a_prompt_that_is_gone() -> None:
    s = crowded_window()
    while 9 in counts(scheduled := start(s)):
        finish(s, scheduled)
    finish(s, scheduled)
    s.abort(9)
    assert counts(start(s)).keys() >= {1, 2}
