"""The planner's inputs are plain values."""

from __future__ import annotations

from tests.helpers.planning_values import capacity
from vramancer_cli.planning.facts import PlanSettings


def test_capacities_compare_by_value_and_can_be_keys() -> None:
    assert {capacity(1, 5), capacity(1, 5), capacity(1, 6)} == {capacity(1, 5), capacity(1, 6)}


def test_defaults_of_the_settings() -> None:
    settings = PlanSettings("auto", 2048)
    assert (settings.block_tokens, settings.max_step_tokens, settings.max_sequences) == (16, 256, 16)
