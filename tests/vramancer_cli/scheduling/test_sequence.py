"""Sequence: rows, tokens and draws follow from what is cached and generated."""

from __future__ import annotations

import pytest

from transport.messages import StepRow
from vramancer_cli.models.readout import PromptReading, Readout
from vramancer_cli.models.sampling import Draw, Sampling
from vramancer_cli.scheduling.cache_group import HeldBlocks
from vramancer_cli.scheduling.sequence import Sequence

SAMPLING = Sampling(temperature=0.5, seed=9)


def sequence(prompt: tuple[int, ...] = (1, 2, 3, 4, 5), **changes: object) -> Sequence:
    values: dict[str, object] = {"max_tokens": 3, "stop_token_ids": frozenset({99}), "arrival": 0}
    return Sequence(7, prompt, SAMPLING, **{**values, **changes})  # type: ignore[arg-type]


def test_a_prompt_goes_out_in_chunks_and_only_the_last_is_sampled() -> None:
    s = sequence()
    s.tables.append(HeldBlocks([4, 5, 6]))
    assert s.next_tokens(3) == (1, 2, 3)
    assert s.launch(3) == StepRow(7, 0, 3, (0,), ((4, 5, 6),), outputs=0)
    s.land(3)
    assert s.next_tokens(2) == (4, 5)
    assert s.launch(2) == StepRow(7, 3, 2, (3,), ((),), outputs=1)


def test_blocks_are_announced_once() -> None:
    s = sequence(prompt=(1,))
    s.tables.append(HeldBlocks([4]))
    s.launch(1)
    s.land(1)
    s.accept(50)
    s.tables[0].blocks.append(8)
    assert s.launch(1) == StepRow(7, 1, 1, (1,), ((8,),), outputs=1)


@pytest.mark.parametrize(
    ("cached", "count", "tokens"), [(0, 7, (1, 2, 3, 4, 5, 50, 51)), (4, 2, (5, 50)), (6, 1, (51,)), (5, 1, (50,))]
)
def test_next_tokens_cross_from_prompt_to_generated(cached: int, count: int, tokens: tuple[int, ...]) -> None:
    assert sequence(generated=[50, 51], launched_tokens=cached).next_tokens(count) == tokens


def test_a_sequence_ends_by_length_with_the_token_and_by_stop_without_it() -> None:
    s = sequence(max_tokens=2)
    assert s.accept(50) is None
    assert s.accept(51) == "length"
    assert s.generated == [50, 51]
    stopped = sequence()
    assert stopped.accept(99) == "stop"
    assert stopped.generated == []


def test_dropping_the_cache_keeps_tokens_and_the_draw() -> None:
    s = sequence(generated=[50, 51], cached_tokens=6, launched_tokens=6)
    s.tables.append(HeldBlocks([3, 1]))
    [held] = s.drop_cache()
    assert held.blocks == [3, 1]
    assert (s.uncached_tokens, s.is_announced, s.tables) == (7, False, [])
    assert s.next_draws[0] == Draw(SAMPLING, 2)


def test_a_state_slot_is_announced_with_the_first_row_only() -> None:
    s = sequence(state_slot=3)
    s.tables.append(HeldBlocks([4, 5]))
    assert s.launch(3) == StepRow(7, 0, 3, (0, 0), ((4, 5), (3,)), outputs=0)
    s.land(3)
    assert s.launch(2) == StepRow(7, 3, 2, (2, 1), ((), ()), outputs=1)
    s.drop_cache()
    assert s.state_slot == -1


def test_a_prompt_that_is_scored_wants_the_outputs_of_every_token_once() -> None:
    s = sequence(reading=PromptReading(top_logprobs=3))
    assert s.next_readout(2) == Readout(7, 2, targets=(2, 3), top_logprobs=3)
    assert s.launch(2).outputs == 2
    s.land(2)
    s.drop_cache()
    assert s.next_readout(1) is None, "it was read before the sequence was thrown out"
    assert s.next_readout(4) == Readout(7, 2, targets=(4, 5), top_logprobs=3)
    last = s.next_readout(5)
    assert last == Readout(7, 3, s.next_draws, targets=(4, 5), top_logprobs=3)
    assert s.launch(5).outputs == 3
    s.land(5)
    s.accept(8)
    assert s.next_readout(1) == Readout(7, 1, s.next_draws)
    s.drop_cache()
    assert s.next_readout(6) == Readout(7, 1, s.next_draws)


def test_a_prompt_that_is_pooled_draws_nothing_where_nothing_follows() -> None:
    mean, last = (sequence(reading=PromptReading(pooling=pooling), max_tokens=0) for pooling in ("mean", "last"))
    assert mean.next_readout(5) == Readout(7, 5, pooled=True)
    assert last.next_readout(4) is None
    assert last.next_readout(5) == Readout(7, 1, pooled=True)
    assert (mean.launch(5).outputs, last.launch(5).outputs) == (5, 1)
