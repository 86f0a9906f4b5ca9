"""Drafting: as many guesses as pay, within what there is room for."""

from __future__ import annotations

from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.drafting import Drafting, Load
from vramancer_cli.scheduling.sequence import Sequence
from vramancer_cli.settings import MOST_DRAFTED

FILE = tuple(range(100, 160))


def copying(tokens: int, *more: int) -> Sequence:
    """It has said so many tokens of its prompt again."""
    sequence = Sequence(1, (*FILE, 7), Sampling(), 100, frozenset(), 0)
    sequence.guesses.read(sequence.prompt)
    sequence.generated.extend((*FILE[:tokens], *more))
    return sequence


def test_a_fixed_number_is_drafted_wherever_there_is_anything_to_guess() -> None:
    assert Drafting(3).draft(copying(2), 9, Load(1, 1)) == FILE[2:5]
    assert Drafting(3).draft(copying(0, 1, 2), 9, Load(1, 1)) == ()
    assert len(Drafting(99).draft(copying(2), 99, Load(1, 1))) == MOST_DRAFTED


def test_the_room_is_kept() -> None:
    for drafting in (Drafting(8), Drafting(None)):
        assert drafting.draft(copying(30), 2, Load(1, 1)) == FILE[30:32]
        assert drafting.draft(copying(30), 0, Load(1, 1)) == drafting.draft(copying(30), -3, Load(1, 1)) == ()


def test_more_is_drafted_of_what_has_been_right() -> None:
    surely, hardly = (len(Drafting(None).draft(copying(said), 99, Load(1, 1))) for said in (30, 3))
    assert surely > 8 > hardly >= 1


def test_less_is_drafted_where_it_costs_more() -> None:
    drafting = Drafting(None)
    for tokens in (1, 5, 9) * 9:
        drafting.cost.note(tokens, 1e-3 * tokens)
    assert drafting.draft(copying(12), 9, Load(1, 1)) == ()


def test_less_is_drafted_where_a_step_is_full_of_other_work() -> None:
    load = Load(64, 64)
    few = Drafting(None).draft(copying(12), 99, load)
    assert len(few) < len(Drafting(None).draft(copying(12), 99, Load(1, 1)))
    assert load.tokens == 64 + len(few) and load.expected <= load.tokens
