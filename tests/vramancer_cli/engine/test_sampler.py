from __future__ import annotations

import math
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vramancer_cli.engine.sampler import choose_tokens, score_tokens, uniform
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


def test_greedy_and_drawn_rows_in_one_batch_do_not_feel_each_other():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    some = [
        GREEDY,
        Draw(Sampling(0.7, top_k=5, seed=1), 0),
        Draw(Sampling(0.0, repetition_penalty=5.0), 3, prompt=tuple(range(40)), generated=(1, 2, 2)),
        Draw(Sampling(1.0, presence_penalty=2.0, seed=2), 2, generated=(0, 1)),
        Draw(Sampling(0.0, logit_bias=((11, 100.0),)), 1),
    ]
    together = choose_tokens(logits.clone(), some)
    alone = [choose_tokens(row[None].clone(), [draw])[0] for row, draw in zip(logits, some, strict=True)]
    assert together == alone and together[4] == 11


def test_a_small_error_in_the_logits_moves_a_draw_as_seldom_as_it_moves_the_shares():
    logits = torch.zeros(2000, 64)  # every share equal: sorted by share, rounding alone would decide the order
    noise = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1)) * 1e-6
    some = draws(Sampling(1.0, seed=9), 2000)
    pairs = zip(choose_tokens(logits.clone(), some), choose_tokens(logits + noise, some), strict=True)
    assert sum(one != other for one, other in pairs) <= 1


def test_scores_are_the_log_softmax_and_its_best():
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(2))
    expected = torch.log_softmax(logits, -1)
    for row, (score, top) in enumerate(zip(score_tokens(expected, [4, 9, 29], [0, 3, 20]), (0, 3, 20), strict=True)):
        token = (4, 9, 29)[row]
        assert (score.token, score.logprob) == (token, float(expected[row, token]))
        best = expected[row].topk(top)
        assert score.top == tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


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


def test_a_temperature_that_float32_does_not_know_leaves_the_most_likely():
    logits = torch.tensor([0.1, 0.4, 0.2]).expand(20, 3).clone()
    for temperature in (1e-30, 1e-40, 1e-60, 5e-324):
        assert choose_tokens(logits.clone(), draws(Sampling(temperature, 1.0, seed=4), 20)) == [1] * 20


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
