"""What is read off final hidden states is what transformers computes for the same tokens."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.stepping import make_plan, no_progress
from transport.errors import LocalProtocolError
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.ends import TorchEnds
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.readout import Readout
from vramancer_cli.models.sampling import Draw, Sampling

IDS = [3, 250, 17, 17, 383, 8, 41]


@pytest.fixture
def ends(engine: TorchEngine, llama: Path) -> TorchEnds:
    """Takes logits two rows at a time, so that turns are taken."""
    plan = make_plan(engine, llama, 1)
    plan = msgspec.structs.replace(plan, ends_bytes=plan.ends_bytes + 2 * 6 * 384 * 4)
    return engine.load_ends(llama, plan, no_progress)


@pytest.fixture(scope="module")
def reference(llama: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of IDS: what enters the final norm, what leaves it, and the log-probabilities."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    entering: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _module, inputs: entering.append(inputs[0][0]))
    with torch.inference_mode():
        output = model(torch.tensor([IDS]), output_hidden_states=True)
    return entering[0], output.hidden_states[-1][0], torch.log_softmax(output.logits[0], -1)


def test_every_kind_of_reading_in_one_step(ends: TorchEnds, reference: tuple[torch.Tensor, ...]) -> None:
    rows, final, logprobs = reference
    greedy = Draw(Sampling(temperature=0.0, top_logprobs=2), 0)
    scored, pooled, drawn, first = ends.read(
        Boundary(torch.cat([rows[:6], rows, rows[-1:], rows[:1]])),
        [
            Readout(1, 6, targets=tuple(IDS[1:7]), top_logprobs=3),
            Readout(2, 7, pooled=True),
            Readout(3, 1, (greedy,)),
            Readout(4, 1, targets=(IDS[1],), draws=(Draw(Sampling(temperature=0.0), 0),)),
        ],
    )
    assert [score.token for score in scored.prompt_scores] == IDS[1:]
    for place, score in enumerate(scored.prompt_scores):
        best = logprobs[place].topk(3)
        assert score.logprob == pytest.approx(float(logprobs[place, score.token]), abs=1e-4)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    torch.testing.assert_close(torch.tensor(pooled.pooled), final.sum(0), atol=1e-3, rtol=1e-4)
    [own] = drawn.scores
    assert drawn.tokens == (int(logprobs[-1].argmax()),)
    assert own.logprob == own.top[0][1] == pytest.approx(float(logprobs[-1].max()), abs=1e-4)
    assert (scored.tokens, pooled.tokens, pooled.scores, drawn.pooled, first.scores) == ((), (), (), (), ())
    assert first.tokens == (int(logprobs[0].argmax()),) and len(first.prompt_scores) == 1


def test_several_draws_are_made_from_the_last_outputs_of_their_readout(
    ends: TorchEnds, reference: tuple[torch.Tensor, ...]
) -> None:
    rows, _, logprobs = reference
    sampling = Sampling(temperature=0.0, top_logprobs=1)
    first, drafted = ends.read(
        Boundary(torch.cat([rows[5:6], rows[1:5]])),
        [Readout(1, 1, (Draw(sampling, 4),)), Readout(2, 4, tuple(Draw(sampling, 9 + n) for n in range(3)))],
    )
    assert first.tokens == (int(logprobs[5].argmax()),)
    assert drafted.tokens == tuple(logprobs[2:5].argmax(-1).tolist())
    best = logprobs[2:5].max(-1).values.tolist()
    assert [score.logprob for score in drafted.scores] == pytest.approx(best, abs=1e-4)


def test_a_score_is_of_the_raw_logits_whatever_the_draw_does_to_them(
    ends: TorchEnds, reference: tuple[torch.Tensor, ...]
) -> None:
    rows, _, logprobs = reference
    forced = Sampling(0.3, top_k=1, seed=3, logit_bias=((77, 100.0),), top_logprobs=0)
    plain = Draw(Sampling(1.0, seed=5), 0)
    alone = ends.read(Boundary(rows[2:3]), [Readout(9, 1, (plain,))])
    outputs = ends.read(
        Boundary(rows[1:4]),
        [Readout(8, 1, (Draw(forced, 0),)), Readout(9, 1, (plain,)), Readout(7, 1, (Draw(forced, 4),))],
    )
    assert outputs[1] == alone[0] and alone[0].scores == ()
    for place, output in ((1, outputs[0]), (3, outputs[2])):
        [score] = output.scores
        assert output.tokens == (77,) and score.top == ()
        assert score.logprob == pytest.approx(float(logprobs[place, 77]), abs=1e-4)


def test_rows_and_readouts_go_together(ends: TorchEnds) -> None:
    assert ends.read(Boundary(torch.zeros(0, 64)), []) == []
    for rows, outputs in ((3, 2), (1, 0), (0, 1)):
        with pytest.raises(LocalProtocolError, match=f"{rows} rows came"):
            ends.read(Boundary(torch.zeros(rows, 64)), [Readout(1, outputs, pooled=True)] if outputs else [])
