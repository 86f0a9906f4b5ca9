from __future__ import annotations

import threading

import pytest

from vramancer_cli.engine.memory import MemoryBudget
from vramancer_cli.errors import OverLimitError


def test_a_reservation_counts_until_it_is_closed_once():
    budget = MemoryBudget(100)
    held = budget.reserve("weights", 60)
    assert budget.used_bytes == 60
    held.close()
    held.close()
    assert budget.used_bytes == 0


def test_more_than_is_free_is_refused_with_both_figures_and_nothing_is_taken():
    budget = MemoryBudget(100)
    with budget.reserve("weights", 60):
        with pytest.raises(OverLimitError, match="KV") as refused:
            budget.reserve("KV", 41)
        assert (refused.value.needed_bytes, refused.value.present_bytes) == (41, 40)
        assert budget.used_bytes == 60
        budget.reserve("KV", 40)


def test_a_negative_size_and_an_empty_limit_are_wrong_use():
    with pytest.raises(ValueError, match="less than nothing"):
        MemoryBudget(1).reserve("weights", -1)
    with pytest.raises(ValueError, match="positive"):
        MemoryBudget(0)


def test_many_threads_never_get_more_than_the_limit():
    budget = MemoryBudget(50)
    granted: list[int] = []

    def take() -> None:
        for _ in range(100):
            try:
                budget.reserve("piece", 1)
            except OverLimitError:
                return
            granted.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == budget.used_bytes == 50
