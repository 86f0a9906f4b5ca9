"""Overlap: groups of decodes stay even, and a prompt is cut so that every stage has a part of it."""

from __future__ import annotations

import pytest

from vramancer_cli.scheduling.overlap import LEAST_CHUNK, Overlap


def pipeline_turns(chunks: list[int], stages: int, overhead: int) -> int:
    """Token times until the last stage is done with the last chunk: each stage takes one after the other."""
    ends = [0] * stages
    for chunk in chunks:
        before = 0
        for stage in range(stages):
            before = ends[stage] = max(before, ends[stage]) + overhead + chunk
    return ends[-1]


def cut(overlap: Overlap, tokens: int, most: int = 256) -> list[int]:
    chunks: list[int] = []
    while tokens:
        chunks.append(min(overlap.chunk(tokens), most))
        tokens -= chunks[-1]
    return chunks


@pytest.mark.parametrize(
    ("everyone", "ready", "flying", "taken"),
    [(16, 16, 0, 8), (16, 8, 1, 8), (16, 15, 1, 8), (16, 1, 1, 1), (7, 7, 0, 4), (1, 1, 0, 1), (16, 16, 2, 0)],
)
def test_a_step_takes_no_more_than_a_group(everyone: int, ready: int, flying: int, taken: int) -> None:
    assert Overlap(2, 3).decodes(everyone, ready, flying) == taken


def test_four_decodes_are_spread_over_three_stages() -> None:
    overlap = Overlap(3, 3)
    assert [overlap.decodes(4, 4, 0), overlap.decodes(4, 2, 1), overlap.decodes(4, 1, 2)] == [2, 1, 1]


def test_one_stage_gains_nothing_by_cutting() -> None:
    assert Overlap(1, 1, 10).chunk(5000) == 5000
    assert Overlap(2, 3).chunk(5000) == 5000


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("tokens", [128, 1024, 4000])
def test_the_cut_is_near_the_best_of_all_even_ones(stages: int, tokens: int) -> None:
    ours = pipeline_turns(cut(Overlap(stages, 2 * stages - 1, 10), tokens), stages, 10)
    even = ([size] * (tokens // size) + [tokens % size or size] for size in range(LEAST_CHUNK, 257))
    assert ours <= 1.15 * min(pipeline_turns(chunks, stages, 10) for chunks in even)


def test_small_prompts_stay_whole() -> None:
    assert cut(Overlap(2, 3, 10), LEAST_CHUNK) == [LEAST_CHUNK]
    assert cut(Overlap(2, 3, 10), LEAST_CHUNK + 10) == [LEAST_CHUNK + 10]
