"""Whatever arrives, leaves and lags: every request ends once, with the tokens that it would get alone, in its turn.

`make properties` (VRM_LONG=1) runs a hundred thousand random steps instead of five thousand.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.scheduler_bench import Bench, Limits, RandomRequests, random_limits, window_group
from vramancer_cli.errors import QueueFullError
from vramancer_cli.scheduling.overlap import Overlap

RANDOM_STEPS = 100_000 if os.environ.get("VRM_LONG") else 5_000
STEPS_PER_EPOCH = 200


@st.composite
def any_limits(draw: st.DrawFn) -> Limits:
    block_tokens, max_step_tokens = draw(st.integers(1, 4)), draw(st.integers(2, 20))
    windows = st.builds(
        window_group, st.integers(1, 8), st.just(block_tokens), st.just(max_step_tokens), st.integers(0, 12)
    )
    return Limits(
        block_count=draw(st.integers(6, 30)),
        block_tokens=block_tokens,
        max_step_tokens=max_step_tokens,
        max_running=draw(st.integers(1, 6)),
        max_waiting=64,
        overlap=draw(st.builds(Overlap, st.integers(1, 3), st.integers(1, 5), st.sampled_from((0, 1, 300)))),
        state_slots=draw(st.sampled_from((0, 0, 0, 1, 4))),
        prefix_cache=draw(st.booleans()),
        draft=draw(st.sampled_from((0, 0, 1, 3, 16, None))),
        windows=tuple(draw(st.lists(windows, max_size=2))),
    )


PROMPTS = st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple)
ARRIVALS = st.tuples(
    st.just("arrive"), PROMPTS, st.integers(1, 6), st.booleans(), st.integers(1, 3), st.sampled_from((0, 0, 0, 1))
)
MOVES = st.one_of(
    ARRIVALS,
    st.tuples(st.just("abort"), st.integers(0, 9)),
    st.tuples(st.just("schedule")),
    st.tuples(st.just("advance"), st.integers(0, 5)),
    st.tuples(st.just("next epoch")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_limits(), st.lists(MOVES, max_size=80))
def test_any_interleaving(limits: Limits, moves: list[tuple]) -> None:
    bench = Bench(limits)
    for name, *values in moves:
        make_move(bench, name, values)
    bench.drain()


def make_move(bench: Bench, name: str, values: list) -> None:
    if name == "schedule":
        bench.schedule()
    elif name == "advance":
        bench.advance(values[0])
    elif name == "next epoch":
        bench.next_epoch()
    elif name == "arrive":
        prompt, max_tokens, stops_early, copies, priority = values
        room = bench.limits.block_count * bench.limits.block_tokens - len(prompt)
        stops = frozenset[int](range(0, 40, 3)) if stops_early else frozenset[int]()
        for seed in range(copies if room > 0 else 0):
            bench.arrive(prompt, seed, min(max_tokens, room), stops, priority)
    elif bench.live:
        bench.abort(list(bench.live.values())[values[0] % len(bench.live)])


def test_a_long_random_run() -> None:
    rng = random.Random(20)
    seen: Counter[str] = Counter()
    while seen["steps"] < RANDOM_STEPS:
        bench = Bench(random_limits(rng))
        requests = RandomRequests(bench, rng)
        while bench.steps < STEPS_PER_EPOCH:
            seen["refused"] += make_random_move(bench, requests, rng)
        bench.drain()
        seen.update(steps=bench.steps, ended=len(bench.done), preempted=bench.preemptions, epochs=bench.epochs)
        seen.update(left_behind=sum(stage.left_behind for stage in bench.stages))
        seen.update(copies=bench.copies, shared=bench.shared, reused=bench.scheduler.reused_tokens)
        seen.update(right=bench.right, wrong=bench.wrong, followed=bench.followed)
    # The run must have seen what it is for.
    assert seen["ended"] > RANDOM_STEPS / 20
    assert min(seen["preempted"], seen["copies"], seen["refused"]) > RANDOM_STEPS / 200
    assert seen["shared"] > RANDOM_STEPS / 50
    assert seen["reused"] > RANDOM_STEPS / 20
    assert min(seen["right"], seen["wrong"]) > RANDOM_STEPS / 50
    assert seen["followed"] > RANDOM_STEPS / 50
    assert seen["left_behind"] > RANDOM_STEPS / 10
    assert seen["epochs"] > RANDOM_STEPS / 100


def make_random_move(bench: Bench, requests: RandomRequests, rng: random.Random) -> int:
    """One for a request refused by the full queue."""
    dice = rng.random()
    if dice < 0.03:
        try:
            requests.arrive()
        except QueueFullError:
            assert bench.scheduler.waiting >= bench.limits.max_waiting
            return 1
    elif dice < 0.034:
        bench.next_epoch()
    elif dice < 0.04 and bench.live:
        bench.abort(rng.choice(list(bench.live.values())))
    elif dice < 0.5:
        bench.schedule()
    else:
        bench.advance(rng.randrange(3))
    return 0


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_a_crowd_in_a_pool_for_one_is_served_in_order_of_arrival(max_in_flight: int) -> None:
    bench = Bench(Limits(4, 2, 8, 8, 32, Overlap(max_in_flight, max_in_flight)))
    crowd = [bench.arrive((n, n + 1, n + 2), n, 5, frozenset()) for n in range(20)]
    bench.drain()
    assert bench.done == crowd


def test_a_lone_request_fills_every_step_and_takes_no_longer_than_it_must() -> None:
    bench = Bench(Limits(32, 4, 8, 16, 32, Overlap(3, 3)))
    bench.arrive(tuple(range(20)), 1, 10, frozenset())
    bench.drain()
    prompt_steps, decode_steps, flush = 3, 9, 1
    assert bench.steps == prompt_steps + decode_steps + flush
