"""Block tables: what steps say adds up, and whatever does not is refused without a trace."""

from __future__ import annotations

import msgspec
import pytest

from transport.errors import RemoteProtocolError
from transport.messages import BlockCopy, Step, StepRow, WindowGroup
from vramancer_cli.engine.block_tables import BlockTables
from vramancer_cli.errors import IntegrityError

BLOCK_TOKENS = 4


def row(sequence: int, start: int, count: int, first: int, blocks: tuple[int, ...], outputs: int = 0) -> StepRow:
    return StepRow(sequence, start, count, (first,), (blocks,), outputs)


def step(*rows: StepRow, ended: tuple[int, ...] = ()) -> Step:
    return Step(1, 0, rows, ended)


def copying(*parts: BlockCopy | StepRow) -> Step:
    copies = tuple(part for part in parts if isinstance(part, BlockCopy))
    return Step(1, 0, tuple(part for part in parts if isinstance(part, StepRow)), copies=copies)


@pytest.fixture
def tables() -> BlockTables:
    """Sequence 1 with 6 tokens in blocks 3 and 4."""
    tables = BlockTables(block_count=10, block_tokens=BLOCK_TOKENS, context_tokens=20)
    tables.apply(step(row(1, 0, 6, 0, (3, 4))))
    return tables


def test_tables_grow_by_the_blocks_of_each_step(tables: BlockTables):
    [placed] = tables.apply(step(row(1, 6, 2, 2, ())))
    assert (placed.start, placed.end, placed.blocks, placed.consecutive) == (6, 8, (3, 4), True)
    [placed] = tables.apply(step(row(1, 8, 1, 2, (5,))))
    assert (placed.blocks, placed.consecutive) == ((3, 4, 5), True)
    [placed] = tables.apply(step(row(1, 9, 8, 3, (9, 0), outputs=3)))
    assert (placed.end, placed.blocks, placed.consecutive, placed.outputs) == (17, (3, 4, 5, 9, 0), False, 3)


def test_a_first_block_of_zero_replaces_the_table(tables: BlockTables):
    [placed] = tables.apply(step(row(1, 6, 3, 0, (3, 4, 0))))
    assert (placed.blocks, placed.consecutive) == ((3, 4, 0), False)
    [placed] = tables.apply(step(row(1, 0, 5, 0, (1, 2))))
    assert (placed.start, placed.end, placed.blocks) == (0, 5, (1, 2))
    [placed] = tables.apply(step(row(2, 0, 1, 0, (3,))))
    assert placed.blocks == (3,)
    tables.check_integrity()


def test_a_new_sequence_may_begin_behind_what_earlier_ones_wrote(tables: BlockTables):
    [shares_full] = tables.apply(step(row(2, 4, 2, 0, (3, 7))))
    assert (shares_full.start, shares_full.end, shares_full.blocks) == (4, 6, (3, 7))
    tables.apply(step(ended=(1, 2)))
    tables.check_integrity()
    [shares_kept] = tables.apply(step(row(3, 6, 1, 0, (3, 4))))
    assert (shares_kept.start, shares_kept.blocks) == (6, (3, 4))
    tables.check_integrity()


def test_what_is_overwritten_is_gone_for_others(tables: BlockTables):
    tables.apply(step(row(2, 0, 1, 0, (3,)), ended=(1,)))
    with pytest.raises(RemoteProtocolError, match="starts at 4, but 1 tokens are here"):
        tables.apply(step(row(3, 4, 1, 0, (3, 5))))


def test_a_copy_holds_what_its_source_held(tables: BlockTables):
    [fork] = tables.apply(copying(BlockCopy(0, 4, 8), row(2, 6, 1, 0, (3, 8))))
    assert (fork.start, fork.blocks) == (6, (3, 8))
    tables.apply(step(row(1, 6, 1, 2, ()), row(2, 7, 1, 2, ())))
    tables.check_integrity()
    with pytest.raises(RemoteProtocolError, match="starts at 7, but 6 tokens are here"):
        other = BlockTables(block_count=10, block_tokens=BLOCK_TOKENS, context_tokens=20)
        other.apply(step(row(1, 0, 6, 0, (3, 4))))
        other.apply(copying(BlockCopy(0, 4, 8), row(2, 7, 1, 0, (3, 8))))


@pytest.mark.parametrize(
    "copies",
    [
        (BlockCopy(0, 4, 3),),
        (BlockCopy(0, 4, 4),),
        (BlockCopy(0, 5, 6),),
        (BlockCopy(0, 10, 6),),
        (BlockCopy(0, 4, 10),),
        (BlockCopy(0, 4, -1),),
        (BlockCopy(1, 4, 6),),
        (BlockCopy(0, 4, 6), BlockCopy(0, 3, 6)),
        (BlockCopy(0, 4, 6), BlockCopy(0, 6, 7)),
        (BlockCopy(0, 3, 6), BlockCopy(0, 4, 3)),
    ],
)
def test_copies_that_would_harm_somebody_are_refused_and_change_nothing(
    tables: BlockTables, copies: tuple[BlockCopy, ...]
):
    with pytest.raises(RemoteProtocolError, match="cannot be copied"):
        tables.apply(copying(*copies))
    tables.check_integrity()
    with pytest.raises(RemoteProtocolError, match="but 0 tokens are here"):
        tables.apply(step(row(2, 1, 1, 0, (6,))))


def test_a_block_that_two_have_is_written_by_neither(tables: BlockTables):
    tables.apply(step(row(2, 4, 1, 0, (3, 7))))
    with pytest.raises(RemoteProtocolError, match="another sequence's block"):
        tables.apply(step(row(1, 0, 3, 0, (3,))))
    with pytest.raises(RemoteProtocolError, match="another sequence's block"):
        tables.apply(step(row(3, 5, 1, 0, (3, 4))))
    tables.check_integrity()
    tables.apply(step(row(1, 0, 3, 0, (3,)), ended=(2,)))
    tables.check_integrity()


def test_integrity_finds_a_block_that_lost_its_table(tables: BlockTables):
    tables.check_integrity()
    del tables._tables[1]
    with pytest.raises(IntegrityError, match="Block 3 has 1 holders, and is in 0 tables"):
        tables.check_integrity()


def test_ended_sequences_are_dropped_before_the_rows_are_placed(tables: BlockTables):
    [placed] = tables.apply(step(row(2, 0, 1, 0, (3,)), ended=(1, 99)))
    assert placed.blocks == (3,)
    assert len(tables) == 1
    assert tables.apply(step(ended=(2,))) == []
    assert len(tables) == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row(1, 7, 1, 2, ()), "starts at 7, but 6 tokens are here"),
        (row(1, 5, 1, 2, ()), "starts at 5, but 6 tokens are here"),
        (row(1, 7, 1, 0, (3, 4)), "starts at 7"),
        (row(2, 1, 1, 0, (5,)), "starts at 1, but 0 tokens are here"),
        (row(1, 6, 3, 2, ()), "too few for 9 tokens"),
        (row(2, 0, 1, 0, ()), "too few for 1 tokens"),
        (row(1, 6, 3, 3, (5,)), "gets blocks at 3, but its table has 2"),
        (row(1, 6, 3, 1, (5,)), "gets blocks at 1, but its table has 2"),
        (row(1, 6, 3, 2, (10,)), "does not exist"),
        (row(1, 6, 3, 2, (-1,)), "does not exist"),
        (row(1, 6, 3, 2, (3,)), "same block twice"),
        (row(1, 6, 3, 2, (5, 5)), "same block twice"),
        (row(1, 6, 0, 2, ()), "adds 0 tokens"),
        (row(1, 6, -1, 2, ()), "adds -1 tokens"),
        (row(1, -1, 1, 2, ()), "at -1"),
        (row(1, 6, 2, 2, (), outputs=3), "wants 3 outputs of 2 tokens"),
        (row(1, 6, 2, 2, (), outputs=-1), "wants -1 outputs"),
        (row(1, 6, 15, 2, (5, 6, 7, 8)), "grows to 21 tokens, over 20"),
        (StepRow(1, 6, 1, (), (), 0), "cache groups"),
        (StepRow(1, 6, 1, (2, 0), ((), ()), 0), "cache groups"),
        (StepRow(1, 6, 1, (2,), (), 0), "cache groups"),
    ],
)
def test_a_row_that_contradicts_the_tables_is_refused_and_changes_nothing(
    tables: BlockTables, wrong: StepRow, why: str
):
    with pytest.raises(RemoteProtocolError, match=why):
        tables.apply(step(row(3, 0, 1, 0, (0,)), wrong, ended=(1,) if wrong.sequence != 1 else ()))
    assert len(tables) == 1
    [placed] = tables.apply(step(row(1, 6, 1, 2, ())))
    assert placed.blocks == (3, 4)


def test_two_rows_of_a_step_may_not_touch_each_other(tables: BlockTables):
    with pytest.raises(RemoteProtocolError, match="twice in one step"):
        tables.apply(step(row(1, 6, 1, 2, ()), row(1, 7, 1, 2, ())))
    with pytest.raises(RemoteProtocolError, match="another sequence's block"):
        tables.apply(step(row(1, 6, 1, 2, ()), row(2, 0, 1, 0, (4,))))


def stateful(sequence: int, start: int, count: int, first: int, slots: tuple[int, ...]) -> StepRow:
    """A row of a model with recurrent state; its blocks are those of the same number."""
    return StepRow(sequence, start, count, (first, first), ((sequence,) if first == 0 else (), slots), 0)


@pytest.fixture
def states() -> BlockTables:
    """Sequence 1 with 2 tokens and state slot 2 of 3."""
    tables = BlockTables(block_count=10, block_tokens=BLOCK_TOKENS, context_tokens=20, state_slots=3)
    assert [placed.state for placed in tables.apply(step(stateful(1, 0, 2, 0, (2,))))] == [2]
    return tables


def test_a_state_slot_stays_with_its_sequence_and_is_free_after_it(states: BlockTables):
    first, second = states.apply(step(stateful(1, 2, 1, 1, ()), stateful(2, 0, 1, 0, (0,))))
    assert (first.state, second.state) == (2, 0)
    [third] = states.apply(step(stateful(3, 0, 1, 0, (2,)), ended=(1,)))
    assert third.state == 2


def test_a_sequence_that_begins_again_may_get_another_slot(states: BlockTables):
    [again] = states.apply(step(stateful(1, 0, 3, 0, (1,))))
    assert again.state == 1
    [same] = states.apply(step(stateful(1, 3, 1, 0, (1,))))
    assert same.state == 1


def test_a_model_without_state_places_rows_without_one(tables: BlockTables):
    [placed] = tables.apply(step(row(1, 6, 1, 2, ())))
    assert placed.state is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (stateful(2, 0, 1, 0, ()), "gets state slots"),
        (stateful(2, 0, 1, 0, (0, 1)), "gets state slots"),
        (StepRow(2, 0, 1, (0, 1), ((2,), (0,)), 0), "gets state slots"),
        (StepRow(1, 2, 1, (1, 1), ((), (0,)), 0), "gets state slots"),
        (StepRow(1, 2, 1, (1, 0), ((), ()), 0), "gets state slots"),
        (stateful(2, 0, 1, 0, (3,)), "gets state slot 3 of 3"),
        (stateful(2, 0, 1, 0, (-1,)), "gets state slot -1"),
        (stateful(2, 0, 1, 0, (2,)), "another sequence's state slot"),
        (stateful(1, 2, 1, 0, (0,)), "with another state than it had"),
        (row(2, 0, 1, 0, (5,)), "cache groups"),
    ],
)
def test_a_row_that_contradicts_the_states_is_refused_and_changes_nothing(
    states: BlockTables, wrong: StepRow, why: str
):
    with pytest.raises(RemoteProtocolError, match=why):
        states.apply(step(stateful(3, 0, 1, 0, (0,)) if wrong.sequence == 1 else stateful(1, 2, 1, 1, ()), wrong))
    [placed] = states.apply(step(stateful(1, 2, 1, 1, ())))
    assert placed.state == 2


def test_drafted_tokens_are_taken_back_on_every_block_that_they_lie_in(tables: BlockTables):
    tables.apply(step(row(1, 6, 8, 2, (5, 6), outputs=8)))
    [placed] = tables.apply(step(row(1, 7, 1, 4, (), outputs=1)))
    assert (placed.start, placed.end, placed.blocks) == (7, 8, (3, 4, 5, 6))
    tables.check_integrity()
    with pytest.raises(RemoteProtocolError, match="starts at 12, but 8 tokens are here"):
        tables.apply(step(row(2, 12, 1, 0, (3, 4, 5, 7)), ended=(1,)))
    [placed] = tables.apply(step(row(1, 8, 6, 4, (), outputs=1)))
    assert placed.end == 14


@pytest.mark.parametrize("start", [5, 12, 15])
def test_no_more_is_taken_back_than_was_drafted(tables: BlockTables, start: int):
    tables.apply(step(row(1, 6, 8, 2, (5, 6), outputs=2)))
    with pytest.raises(RemoteProtocolError, match=f"starts at {start}, but 14 tokens are here"):
        tables.apply(step(row(1, start, 1, 4, ())))
    tables.apply(step(row(1, 13, 1, 4, (), outputs=1)))
    with pytest.raises(RemoteProtocolError, match="starts at 13, but 14 tokens are here"):
        tables.apply(step(row(1, 13, 1, 4, ())))


def test_nothing_is_taken_back_that_another_sequence_reads(tables: BlockTables):
    tables.apply(step(row(1, 6, 2, 2, (), outputs=2)))
    tables.apply(step(row(2, 8, 1, 0, (3, 4, 7))))
    with pytest.raises(RemoteProtocolError, match="takes back what another sequence reads"):
        tables.apply(step(row(1, 7, 1, 2, ())))


def test_a_recurrent_state_cannot_be_taken_back():
    tables = BlockTables(10, BLOCK_TOKENS, 20, state_slots=2)
    tables.apply(step(StepRow(1, 0, 3, (0, 0), ((3,), (1,)), outputs=3)))
    with pytest.raises(RemoteProtocolError, match="starts at 2, but 3 tokens are here"):
        tables.apply(step(StepRow(1, 2, 1, (1, 1), ((), ()), outputs=1)))


# --- the group of a window ------------------------------------------------------------------------------------------

WINDOW_TOKENS = 5
"""With 16 tokens to roll back: a row at `start` 24 may see position 4, and block 0 goes back."""


def windowed(
    sequence: int, start: int, count: int, given: tuple[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]]
) -> StepRow:
    """`given`: of group 0 and of the window's group, the first number and the blocks."""
    (first, blocks), (window_first, window_blocks) = given
    return StepRow(sequence, start, count, (first, window_first), (blocks, window_blocks), 0)


@pytest.fixture
def windows() -> BlockTables:
    """Sequence 1 with 24 tokens in blocks 0 to 5 of group 0, and 7 down to 2 of the window's."""
    tables = BlockTables(16, BLOCK_TOKENS, 60, windows=(WindowGroup(WINDOW_TOKENS, 8),))
    tables.apply(step(windowed(1, 0, 24, ((0, (0, 1, 2, 3, 4, 5)), (0, (7, 6, 5, 4, 3, 2))))))
    return tables


def test_what_a_window_has_left_behind_is_anothers_in_the_same_step(windows: BlockTables):
    [first] = windows.apply(step(windowed(1, 24, 1, ((6, (6,)), (6, (1,))))))
    assert [(table.first, table.blocks) for table in first.groups] == [
        (0, (0, 1, 2, 3, 4, 5, 6)),
        (1, (6, 5, 4, 3, 2, 1)),
    ]
    windows.apply(step(windowed(1, 25, 3, ((7, ()), (7, ())))))
    second, third = windows.apply(
        step(windowed(2, 0, 4, ((0, (7,)), (0, (6,)))), windowed(1, 28, 1, ((7, (8,)), (7, (7,)))))
    )
    assert second.windows[0].blocks == (6,)
    assert (third.windows[0].first, third.windows[0].blocks) == (2, (5, 4, 3, 2, 1, 7))
    windows.check_integrity()


def test_a_window_that_has_moved_on_may_lie_together_again():
    tables = BlockTables(16, BLOCK_TOKENS, 60, windows=(WindowGroup(1, 8),))
    [placed] = tables.apply(step(windowed(1, 0, 20, ((0, (0, 1, 2, 3, 4)), (0, (7, 0, 1, 2, 3))))))
    assert not placed.windows[0].consecutive
    [placed] = tables.apply(step(windowed(1, 20, 4, ((5, (5,)), (5, (4,))))))
    assert placed.windows[0].consecutive


def test_a_sequence_begins_with_the_window_that_it_reads(windows: BlockTables):
    """Behind 16 tokens of the first one: it may see position 12, which is the beginning of block 3."""
    [placed] = windows.apply(step(windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (3, (4, 0))))))
    assert (placed.windows[0].first, placed.windows[0].blocks) == (3, (4, 0))
    windows.check_integrity()


def test_a_part_of_a_block_is_copied_in_every_group(windows: BlockTables):
    row = windowed(2, 22, 1, ((0, (0, 1, 2, 3, 4, 9)), (4, (3, 0))))
    windows.apply(copying(BlockCopy(0, 5, 9), BlockCopy(1, 2, 0), row))
    windows.check_integrity()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (4, (0,)))), "gets blocks at 4, but its table has 3"),
        (windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (3, (0, 1)))), "starts at 16, but 12 tokens are here"),
        (windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (3, (4,)))), "has 4 blocks, too few for 18 tokens"),
        (windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (3, ()))), "starts at 16, but 12 tokens are here"),
        (windowed(2, 16, 2, ((0, (0, 1, 2, 3, 8)), (3, (4, 2)))), "another sequence's block"),
        (windowed(2, 0, 2, ((0, (8,)), (0, (8,)))), "does not exist"),
        (windowed(1, 24, 1, ((6, (6,)), (5, (1,)))), "gets blocks at 5, but its table has 6"),
        (windowed(1, 24, 1, ((6, (6,)), (6, (2,)))), "the same block twice"),
        (row(2, 0, 1, 0, (8,)), "cache groups"),
    ],
)
def test_a_row_that_contradicts_a_window_is_refused_and_changes_nothing(windows: BlockTables, wrong: StepRow, why: str):
    with pytest.raises(RemoteProtocolError, match=why):
        windows.apply(step(wrong))
    windows.check_integrity()
    windows.apply(step(windowed(1, 24, 1, ((6, (6,)), (6, (7,))))))


@pytest.mark.parametrize("copy", [BlockCopy(2, 0, 9), BlockCopy(1, 2, 8), BlockCopy(1, 2, 3), BlockCopy(1, 0, 1)])
def test_a_copy_in_a_window_is_checked_too(windows: BlockTables, copy: BlockCopy):
    with pytest.raises(RemoteProtocolError, match="cannot be copied"):
        windows.apply(copying(copy))


def test_drafted_tokens_are_taken_back_in_windows_too(windows: BlockTables):
    drafted = msgspec.structs.replace(windowed(1, 24, 8, ((6, (6, 7)), (6, (1, 0)))), outputs=8)
    windows.apply(step(drafted))
    [placed] = windows.apply(step(windowed(1, 25, 1, ((8, ()), (8, ())))))
    assert (placed.end, placed.windows[0].first, placed.windows[0].blocks) == (26, 1, (6, 5, 4, 3, 2, 1, 0))
    windows.check_integrity()
    with pytest.raises(RemoteProtocolError, match="starts at 28, but 26 tokens are here"):
        windows.apply(step(windowed(2, 28, 1, ((0, (*range(7), 8)), (6, (1, 7)))), ended=(1,)))
