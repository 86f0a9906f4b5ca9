"""StepCost: what another token costs is learnt from steps of several sizes, and forgotten slowly."""

from __future__ import annotations

import random

import pytest

from vramancer_cli.scheduling.step_cost import PRIOR_PER_TOKEN, StepCost


def learnt(
    fixed_s: float, per_token_s: float, *, sizes: tuple[int, ...] = (1, 5, 1, 9), noise: float = 0.0
) -> StepCost:
    rng, cost = random.Random(4), StepCost()
    for number in range(60):
        tokens = sizes[number % len(sizes)]
        cost.note(tokens, (fixed_s + per_token_s * tokens) * (1 + noise * rng.random()))
    return cost


def break_even(cost: StepCost, expected: float = 1.0, tokens: int = 1) -> float:
    """The least chance that pays, in hundredths."""
    return next(hundredth / 100 for hundredth in range(101) if cost.pays(hundredth / 100, expected, tokens))


def test_without_steps_a_token_costs_what_is_usual() -> None:
    assert break_even(StepCost()) == pytest.approx(PRIOR_PER_TOKEN, abs=0.02)
    assert break_even(learnt(1e-3, 0, sizes=(1,))) == pytest.approx(PRIOR_PER_TOKEN, abs=0.02), "one size says nothing"


@pytest.mark.parametrize(("fixed_s", "per_token_s", "expected"), [(9e-3, 1e-3, 0.1), (5e-3, 5e-3, 0.5), (1e-2, 0, 0)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_least_chance_that_pays_is_a_tokens_share_of_the_step(
    fixed_s: float, per_token_s: float, expected: float, noise: float
) -> None:
    assert break_even(learnt(fixed_s, per_token_s, noise=noise)) == pytest.approx(expected, abs=0.07)


def test_nothing_pays_where_tokens_are_all_that_costs() -> None:
    assert not learnt(0, 1e-3).pays(0.9, 1.0, 1)


def test_a_step_that_yields_much_already_wants_better_guesses() -> None:
    cost = learnt(9e-3, 1e-3)
    assert cost.pays(0.3, 1.0, 1) and not cost.pays(0.3, 4.0, 4)
    assert break_even(cost, expected=16.0, tokens=16) == pytest.approx(16 / 25, abs=0.07)


def test_a_hiccup_of_the_machine_changes_little() -> None:
    cost = learnt(9e-3, 1e-3)
    cost.note(9, 20.0)
    assert break_even(cost) < 0.25


def test_what_looked_too_expensive_is_tried_again_later() -> None:
    cost = learnt(1e-3, 5e-3)
    assert not cost.pays(0.6, 1.0, 1)
    for _ in range(400):
        cost.note(1, 6e-3)
    assert cost.pays(0.6, 1.0, 1)


def test_steps_that_took_no_time_say_nothing() -> None:
    cost = StepCost()
    cost.note(3, 0.0)
    cost.note(9, -1.0)
    assert break_even(cost) == pytest.approx(PRIOR_PER_TOKEN, abs=0.02)
