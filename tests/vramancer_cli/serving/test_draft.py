from __future__ import annotations

import pytest

from vramancer_cli.models.readout import TokenScore
from vramancer_cli.serving.answer import CutAnswerError
from vramancer_cli.serving.draft import Draft, best
from vramancer_cli.serving.replies import Piece, Told


def draft(text: str, *logprobs: float, echo: float | None = None) -> Draft:
    made = Draft()
    if echo is not None:
        made.add(Piece("prompt ", scores=(TokenScore(0, None), TokenScore(1, echo))))
    for logprob in logprobs:
        made.add(Piece(text, tokens=1, scores=(TokenScore(2, logprob),)))
    made.add(Piece("", finish_reason="stop"))
    return made


def test_pieces_become_a_whole_choice() -> None:
    scores = (TokenScore(0, None), TokenScore(1, -9.0), TokenScore(2, -1.0))
    assert draft("a", -1.0, echo=-9.0).told(with_scores=True) == Told("prompt a", "stop", scores)
    assert draft("a", -1.0).told(with_scores=False) == Told("a", "stop")


def test_the_best_have_the_highest_mean_log_probability_of_their_own_tokens() -> None:
    long, short, silent = draft("l", -0.3, -0.5, -0.4), draft("s", -0.5), draft("")
    echoing = draft("e", -0.1, echo=-50.0)
    assert best([silent, short, long, echoing], 3) == [echoing, long, short]
    assert best([short, long], 2) == [short, long], "nobody is left out, so nobody is moved"


def test_a_choice_that_did_not_end_is_a_cut_answer() -> None:
    cut = Draft()
    cut.add(Piece("half", tokens=1))
    with pytest.raises(CutAnswerError):
        cut.told(with_scores=False)
