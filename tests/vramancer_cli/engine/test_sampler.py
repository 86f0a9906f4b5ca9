from __future__ import annotations

import math
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vramancer_cli.engine.sampler import choose_tokens, uniform
from vramancer_cli.models.sampling import Draw, Sampling

GREEDY = Draw(Sampling(temperature=0.0), 0)


def draws(sampling: Sampling, count: int) -> list[Draw]:
    return [Draw(sampling, index) for index in range(count)]


def test_greedy_takes_the_most_likely():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert choose_tokens(logits, [GREEDY, GREEDY]) == [1, 0]


def test_the_draw_depends_on_seed_and_index_only():
    same = Draw(Sampling(1.0, 1.0, seed=3), 5)
    assert uniform(same) == uniform(Draw(Sampling(0.2, 0.4, seed=3), 5))
    others = {uniform(Draw(Sampling(seed=seed), index)) for seed in range(20) for index in range(20)}
    assert len(others) == 400
    assert 0.4 < sum(others) / 400 < 0.6


def test_a_row_is_sampled_alike_whatever_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator)
    some = [Draw(Sampling(0.9, 0.8, seed=index), index) for index in range(6)]
    together = choose_tokens(logits, some)
    assert together == [choose_tokens(row[None], [draw])[0] for row, draw in zip(logits, some, strict=True)]


def test_frequencies_follow_the_softmax():
    shares = torch.tensor([0.5, 0.3, 0.2])
    logits = shares.log().expand(3000, 3)
    counts = Counter(choose_tokens(logits, draws(Sampling(1.0, 1.0, seed=1), 3000)))
    for token, share in enumerate(shares.tolist()):
        assert abs(counts[token] / 3000 - share) < 0.03


def test_temperature_sharpens_and_flattens():
    logits = torch.tensor([1.0, 0.0]).expand(1000, 2)
    share = {t: choose_tokens(logits, draws(Sampling(t, 1.0, seed=2), 1000)).count(0) / 1000 for t in (0.25, 1.0, 4.0)}
    for temperature, measured in share.items():
        assert abs(measured - 1 / (1 + math.exp(-1 / temperature))) < 0.05


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(500, 4)
    for top_p, kept in ((0.3, {1}), (0.65, {1, 3}), (0.85, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        assert set(choose_tokens(logits, draws(Sampling(1.0, top_p, seed=3), 500))) == kept


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    temperature=st.floats(1e-6, 100),
    top_p=st.floats(1e-6, 1),
    seed=st.integers(0, 2**63),
)
def test_a_token_without_a_share_is_never_drawn(values: list[float], temperature: float, top_p: float, seed: int):
    logits = torch.tensor([values])
    [token] = choose_tokens(logits, [Draw(Sampling(temperature, top_p, seed), 0)])
    shares = torch.softmax((logits[0] - logits.max()) / temperature, -1)
    assert shares[token] > 0
