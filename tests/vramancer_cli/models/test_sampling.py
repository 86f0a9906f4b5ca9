from __future__ import annotations

from dataclasses import replace

from vramancer_cli.models.sampling import Draw, Sampling, next_draw

PROMPT = (3, 17, 17)
GENERATED = [5, 3, 5]
STOPS = frozenset({1})


def test_a_draw_carries_history_only_where_the_sampling_looks_back() -> None:
    plain = Sampling(0.7, 0.9, seed=2, top_k=3, min_p=0.1, logit_bias=((7, 5.0),), top_logprobs=2)
    assert next_draw(plain, PROMPT, GENERATED, STOPS) == Draw(plain, 3)
    for changed in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}):
        sampling = replace(plain, **changed)
        draw = next_draw(sampling, PROMPT, GENERATED, STOPS)
        assert draw == Draw(sampling, 3, PROMPT, tuple(GENERATED)) and draw.prompt is PROMPT


def test_stop_tokens_are_banned_before_min_tokens() -> None:
    sampling = Sampling(min_tokens=2)
    banned = [next_draw(sampling, PROMPT, GENERATED[:count], STOPS).banned for count in range(4)]
    assert banned == [STOPS, STOPS, frozenset(), frozenset()]
