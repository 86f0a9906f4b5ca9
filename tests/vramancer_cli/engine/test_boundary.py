from __future__ import annotations

import pytest
import torch

from transport.errors import RemoteProtocolError
from vramancer_cli.engine.boundary import Boundary, check, gathered, joined, nothing
from vramancer_cli.engine.seam import DRY_DTYPE, Crossing

HIDDEN = Crossing("2.0", 1, (1, 1, 8), 1, DRY_DTYPE)
SHARED = Crossing("2.shared.0", 0, (1, 2, 1, 4), 2, DRY_DTYPE)
IDS = Crossing("0.input_ids", -1, (1, 1), 1, torch.int64)
CHOSEN = Crossing("2.chosen", 1, (1, 1, 1), 1, torch.int32, choices=True)
ALL = (HIDDEN, SHARED, IDS, CHOSEN)
LIMITS = (100, 64)


def crossing_tensors() -> dict[str, torch.Tensor]:
    return {
        "2.0": torch.randn(1, 5, 8),
        "2.shared.0": torch.randn(1, 2, 5, 4),
        "0.input_ids": torch.arange(5)[None],
        "2.chosen": torch.arange(15, dtype=torch.int32).reshape(1, 5, 3),
    }


def test_what_layers_take_comes_back_from_rows():
    tensors = crossing_tensors()
    boundary = gathered(ALL, tensors)
    assert boundary.hidden.shape == (5, 8)
    assert {name: tuple(tensor.shape) for name, tensor in boundary.beside.items()} == {
        "2.shared.0": (5, 8), "0.input_ids": (5, 1), "2.chosen": (5, 3)
    }  # fmt: skip
    taken = boundary.taken(ALL)
    assert all(torch.equal(taken[name], tensor) for name, tensor in tensors.items())
    check(boundary, ALL, 5, torch.float32, LIMITS)


def test_parts_join_to_the_whole():
    boundary = gathered(ALL, crossing_tensors())
    again = joined([boundary.part(0, 2), boundary.part(2, 3)])
    assert torch.equal(again.hidden, boundary.hidden)
    assert all(torch.equal(again.beside[name], tensor) for name, tensor in boundary.beside.items())


def test_shorter_choices_are_filled_up_and_cut_down_again():
    short, long = torch.tensor([[0]]), torch.tensor([[0, 1, 2], [2, 1, 0]])
    both = joined([Boundary(torch.zeros(1, 8), {"2.chosen": short}), Boundary(torch.zeros(2, 8), {"2.chosen": long})])
    assert both.beside["2.chosen"].tolist() == [[0, -1, -1], [0, 1, 2], [2, 1, 0]]
    assert torch.equal(CHOSEN.from_rows(both.part(0, 1).beside["2.chosen"])[0], short)
    assert torch.equal(CHOSEN.from_rows(both.part(1, 2).beside["2.chosen"])[0], long)


def test_for_no_tokens_everything_is_there_and_empty():
    boundary = nothing(ALL, torch.bfloat16, torch.device("cpu"))
    assert boundary.hidden.dtype == torch.bfloat16
    check(boundary, ALL, 0, torch.bfloat16, LIMITS)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("2.shared.0", torch.zeros(5, 7), "was due"),
        ("2.shared.0", torch.zeros(4, 8), "was due"),
        ("2.shared.0", torch.zeros(5, 8).half(), "was due"),
        ("0.input_ids", torch.full((5, 1), 100), "outside"),
        ("0.input_ids", torch.full((5, 1), -1), "outside"),
        ("2.chosen", torch.full((5, 3), 64, dtype=torch.int32), "outside"),
        ("2.chosen", torch.full((5, 3), -2, dtype=torch.int32), "outside"),
        ("2.chosen", torch.zeros(5, 65, dtype=torch.int32), "outside"),
        ("more", torch.zeros(5, 1), "were due"),
    ],
)
def test_what_is_not_due_is_refused(name: str, value: torch.Tensor, why: str):
    boundary = gathered(ALL, crossing_tensors())
    with pytest.raises(RemoteProtocolError, match=why):
        check(Boundary(boundary.hidden, {**boundary.beside, name: value}), ALL, 5, torch.float32, LIMITS)
    missing = {key: tensor for key, tensor in boundary.beside.items() if key != name}
    if name in boundary.beside:
        with pytest.raises(RemoteProtocolError, match="were due"):
            check(Boundary(boundary.hidden, missing), ALL, 5, torch.float32, LIMITS)
