from __future__ import annotations

from dataclasses import replace

import pytest

from bench.table.costs import Calibration, Case, Costs, Way, knees

COSTS = Costs(step_s=0.1, row_s=0.002, prompt_row_s=0.001, look_s=1e-6, hop_s=0.001, row_bytes=4096)


def test_the_model_says_what_its_constants_were_measured_from():
    rates = {
        "one": COSTS.rate(Case(1, 16)),
        "crowd": COSTS.rate(Case(16, 16)),
        "far": COSTS.rate(Case(1, 2048)),
        "prefill": COSTS.rate(Case(prompt_tokens=256)),
        "two_stages": COSTS.rate(Case(1, 16, stages=2)),
    }
    found = Calibration(context=16, streams=16, far_context=2048, prefill_tokens=256, **rates).costs(4096)
    for name in ("step_s", "row_s", "prompt_row_s", "look_s", "hop_s"):
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name)), name


def test_noise_makes_no_constant_negative():
    found = Calibration(16, 10.0, 16, 200.0, 2048, 11.0, 256, 5000.0, 12.0).costs(4096)
    assert min(found.row_s, found.prompt_row_s, found.look_s, found.hop_s) == 0.0
    assert found.rate(Case(4, 100, 3)) > 0


def test_one_stream_pays_every_hop_and_many_hide_the_others_work():
    """One stream over two stages is slower than over one; two streams keep both busy, up to twice the speed."""
    one, many = (COSTS.rate(Case(n, 0, 2)) / COSTS.rate(Case(n, 0, 1)) for n in (1, 16))
    assert one == pytest.approx(0.102 / 0.104)
    assert 1.0 < many <= 2.0


def test_delay_and_bandwidth_cost_each_hop_what_they_take():
    plain = Case(1, 0, 3)
    slow = replace(plain, way=Way(0.005, 4096 / 0.01))
    assert 1 / COSTS.rate(slow) - 1 / COSTS.rate(plain) == pytest.approx(3 * (0.005 + 0.01))
    assert sum(COSTS.parts(slow).values()) == pytest.approx(1 / COSTS.rate(slow))


def test_a_prompt_in_chunks_is_as_fast_as_the_narrowest_place():
    narrow = Case(stages=2, prompt_tokens=2560, way=Way(bytes_per_s=256 * 4096 / 10.0))
    assert COSTS.rate(narrow) == pytest.approx(256 / 10.0, rel=0.1)
    wide = COSTS.rate(replace(narrow, way=Way()))
    assert 1.5 < wide / COSTS.rate(Case(prompt_tokens=2560)) < 2.0


def test_a_knee_is_where_a_curve_turns():
    assert knees([1, 2, 4, 8, 8.1, 8.2]) == [3]
    assert knees([100, 90, 81, 73]) == []
    assert knees([5.0]) == []
