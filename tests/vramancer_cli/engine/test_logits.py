"""Every formula against transformers' own processor, or against NumPy where transformers has none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from vramancer_cli.engine.logits import LOOK_FIRST_FROM_TOKENS, NUCLEUS_TOKENS, process, shares
from vramancer_cli.models.sampling import Sampling, next_draw

PROMPT = (3, 17, 17, 250, 999)
GENERATED = [5, 3, 5, 5, 40, 999]
VOCABULARY = 1000
BIASES = ((7, 5.0), (40, -100.0), (999, 0.5))


def random_logits(rows: int = 4, spread: float = 3.0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows)) * spread


def processed(logits: torch.Tensor, sampling: Sampling, stops: frozenset[int] = frozenset()) -> torch.Tensor:
    changed = logits.clone()
    process(changed, [next_draw(sampling, PROMPT, GENERATED, stops)] * len(logits))
    return changed


def history(logits: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[*PROMPT, *GENERATED]] * len(logits))


def normal(kept: torch.Tensor) -> torch.Tensor:
    return kept / kept.sum(-1, keepdim=True)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits()
    expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(history(logits), logits)
    assert torch.equal(processed(logits, Sampling(repetition_penalty=penalty)), expected)


def test_logit_bias_is_the_sequence_bias_of_transformers() -> None:
    logits = random_logits()
    expected = reference.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in BIASES])(
        history(logits), logits
    )
    assert torch.equal(processed(logits, Sampling(logit_bias=BIASES)), expected)


def test_a_bias_for_a_token_that_only_the_tokenizer_knows_changes_nothing() -> None:
    logits = random_logits()
    assert torch.equal(processed(logits, Sampling(logit_bias=((VOCABULARY + 3, 50.0),))), logits)


@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, -1.5), (0.4, 0.9)])
def test_frequency_and_presence_penalty_follow_the_definition_of_openai(frequency: float, presence: float) -> None:
    logits = random_logits()
    expected = logits.numpy().copy()
    for token, count in Counter(GENERATED).items():
        expected[:, token] -= np.float32(count * frequency + presence)
    changed = processed(logits, Sampling(frequency_penalty=frequency, presence_penalty=presence))
    np.testing.assert_allclose(changed.numpy(), expected, rtol=0, atol=1e-6)


def test_stop_tokens_are_banned_until_min_tokens_as_in_transformers() -> None:
    logits, stops = random_logits(), frozenset({5, 6, VOCABULARY + 1})
    banning = reference.MinNewTokensLengthLogitsProcessor(len(PROMPT), 7, [5, 6])
    assert torch.equal(processed(logits, Sampling(min_tokens=7), stops), banning(history(logits), logits))
    assert torch.equal(processed(logits, Sampling(min_tokens=6), stops), logits)


def test_all_of_them_come_in_the_order_of_transformers() -> None:
    logits = random_logits()
    ids, expected = history(logits), logits
    for step in (
        reference.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in BIASES]),
        reference.RepetitionPenaltyLogitsProcessor(1.4),
        reference.MinNewTokensLengthLogitsProcessor(len(PROMPT), 9, [5]),
    ):
        expected = step(ids, expected)
    sampling = Sampling(logit_bias=BIASES, repetition_penalty=1.4, min_tokens=9)
    assert torch.equal(processed(logits, sampling, frozenset({5})), expected)


WARPED = [
    Sampling(0.3),
    Sampling(1.7),
    Sampling(1.0, top_k=1),
    Sampling(1.0, top_k=40),
    Sampling(1.0, top_k=5000),
    Sampling(1.0, top_p=0.5),
    Sampling(0.8, top_p=0.95),
    Sampling(5.0, top_p=0.9999),
    Sampling(1.0, min_p=0.05),
    Sampling(2.0, min_p=1.0),
    Sampling(0.7, top_p=0.8, top_k=20),
    Sampling(1.5, top_p=0.9, top_k=100, min_p=0.02),
]


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """transformers' warpers in its order, as shares."""
    ids = history(logits)
    scores = reference.TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k:
        scores = reference.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = reference.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = reference.MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("sampling", WARPED, ids=str)
def test_what_is_cut_off_and_what_stays_is_that_of_transformers(sampling: Sampling) -> None:
    logits = random_logits(8)
    expected, kept = warped(logits, sampling), normal(shares(logits, [sampling] * 8))
    assert torch.equal(kept > 0, expected > 0)
    torch.testing.assert_close(kept, expected)


def test_a_nucleus_wider_than_the_first_look_is_found_whole() -> None:
    logits = random_logits(2, spread=0.1, vocabulary=2 * LOOK_FIRST_FROM_TOKENS)
    narrow, wide = Sampling(top_p=0.01), Sampling(top_p=0.9)
    kept = shares(logits, [narrow, wide])
    assert torch.equal(kept[:1] > 0, warped(logits[:1], narrow) > 0)
    assert torch.equal(kept[1:] > 0, warped(logits[1:], wide) > 0)
    assert int((kept[1] > 0).sum()) > NUCLEUS_TOKENS


def test_rows_that_ask_for_different_things_get_what_each_gets_alone() -> None:
    logits = random_logits(len(WARPED))
    together = shares(logits, WARPED)
    for row, sampling in enumerate(WARPED):
        assert torch.equal(together[row], shares(logits[row : row + 1], [sampling])[0])


def test_equal_shares_stay_or_go_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert torch.equal(shares(logits, [Sampling(top_k=2)])[0] > 0, torch.tensor([True, True, True, False]))
    assert torch.equal(shares(logits, [Sampling(top_p=0.65)])[0] > 0, torch.tensor([True, True, True, False]))


@settings(deadline=None, max_examples=80)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(1e-6, 100),
        top_p=st.floats(0, 1),
        top_k=st.integers(0, 20),
        min_p=st.floats(0, 1),
    ),
)
def test_the_likeliest_token_always_stays(values: list[float], sampling: Sampling) -> None:
    kept = shares(torch.tensor([values]), [sampling])[0]
    assert bool(torch.isfinite(kept).all()) and kept[max(range(len(values)), key=values.__getitem__)] > 0
