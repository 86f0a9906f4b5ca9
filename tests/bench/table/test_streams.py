from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bench.table.ours import check_run, check_split
from bench.table.streams import NotMeasuredError, Told, _told, crowd_rate
from tests.helpers.boards import CLUSTER, DESK, KITCHEN


def events(count: int, **usage: int) -> list[tuple[float, bytes]]:
    told: list[dict[str, Any]] = [{"choices": [{"text": "ab"}]} for _ in range(count)]
    told += [{"choices": [{"text": "", "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
    lines = [b"data: " + json.dumps(event).encode() + b"\n" for event in told]
    return [(1.0 + number / 10, line) for number, line in enumerate([*lines, b"data: [DONE]\n"])]


def test_rates_leave_the_first_token_out_of_decoding():
    told = _told(0.5, events(5, prompt_tokens=100, completion_tokens=5), 100, 5)
    assert told.prefill_rate == pytest.approx(100 / 0.5)
    assert told.decode_rate == pytest.approx(4 / 0.4)


@pytest.mark.parametrize(
    ("count", "usage"),
    [
        (4, {"prompt_tokens": 100, "completion_tokens": 5}),  # two tokens in one piece: their times are not known
        (5, {"prompt_tokens": 101, "completion_tokens": 5}),
        (5, {"prompt_tokens": 100, "completion_tokens": 4}),
        (5, {}),
    ],
)
def test_another_count_of_tokens_is_no_measurement(count: int, usage: dict[str, int]):
    with pytest.raises(NotMeasuredError):
        _told(0.5, events(count, **usage), 100, 5)


def crowd(count: int, late_s: float = 0.0) -> list[Told]:
    """Streams of 20 tokens, ten a second each; the last one begins late."""
    starts = [0.0] * (count - 1) + [late_s]
    return [Told(0.0, tuple(start + n / 10 for n in range(20)), 16) for start in starts]


def test_a_crowds_rate_is_the_sum_of_its_streams():
    assert crowd_rate(crowd(16), at_once=16) == pytest.approx(160.0, rel=0.01)


def test_a_stream_that_comes_late_spoils_a_crowd_unless_it_had_to_wait():
    late = crowd(16, late_s=1.2)
    with pytest.raises(NotMeasuredError, match="15 of 16"):
        crowd_rate(late, at_once=16)
    assert crowd_rate(late, at_once=15) < 160.0


@pytest.mark.parametrize(
    "after",
    [{"prefix_found_tokens": 16}, {"tokens_per_trip": 1.4}, {"draft_acceptance": 0.2}, {"epoch": CLUSTER.epoch + 1}],
    ids=lambda change: next(iter(change)),
)
def test_cache_hits_drafts_and_new_plans_spoil_a_run(after: dict[str, Any]):
    before = replace(CLUSTER, tokens_per_trip=1.0)
    check_run(before, before)
    with pytest.raises(NotMeasuredError):
        check_run(before, replace(before, **after))


def test_layers_have_to_lie_in_equal_parts():
    def split(*layers: tuple[int, int]):
        nodes = (replace(node, layers=held) for node, held in zip((DESK, KITCHEN), layers, strict=True))
        return replace(CLUSTER, layer_count=16, nodes=tuple(nodes))

    check_split(split((0, 8), (8, 16)), 2)
    with pytest.raises(NotMeasuredError, match="equal"):
        check_split(split((0, 7), (7, 16)), 2)
    with pytest.raises(NotMeasuredError, match="equal"):
        check_split(split((0, 8), (8, 16)), 3)
