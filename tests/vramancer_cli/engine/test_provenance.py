from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.provenance import PROLOGUE, Provenance, leaves_of, tensors_in
from vramancer_cli.errors import ModelError


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_what_is_made_of_the_tokens_is_told_from_what_is_not():
    ids, table = meta(4), meta(4)
    with Provenance(ids) as provenance:
        embedded, rotated = ids * 2, table.cos()
        view = embedded[:2]
    assert [provenance.of(tensor) for tensor in (ids, embedded, view)] == [PROLOGUE] * 3
    assert provenance.of(rotated) is None


def test_what_a_layer_makes_is_its_own():
    ids = meta(4)
    with Provenance(ids) as provenance:
        provenance.enter(3, [ids])
        made, constant = ids + 1, torch.arange(4, device="meta") + 1
        provenance.leave()
        after = made * 2
    assert (provenance.of(made), provenance.of(after), provenance.of(constant)) == (3, 3, None)


def test_work_between_layers_on_values_of_two_depths_is_refused():
    ids = meta(4)
    with Provenance(ids) as provenance:
        provenance.enter(0, [ids])
        made = ids + 1
        provenance.leave()
        with pytest.raises(ModelError, match="different depths"):
            made + ids


def test_a_layer_that_takes_what_it_was_not_handed_is_refused():
    ids = meta(4)
    with Provenance(ids) as provenance:
        hidden = ids * 2
        provenance.enter(1, [hidden])
        hidden + 1
        with pytest.raises(ModelError, match="Layer 1 uses"):
            ids + 1


def test_tensors_are_found_in_nested_arguments():
    one, two = meta(1), meta(2)
    nested = ((one,), {"kept": {"k": [None, two]}, "flag": True})
    assert [path for path, _ in leaves_of(nested)] == [(0, 0), (1, "kept", "k", 1)]
    assert list(tensors_in(nested)) == [one, two]
