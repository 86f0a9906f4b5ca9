from __future__ import annotations

import torch

from vramancer_cli.engine.dry_run import LiveElements, ReadsZero


def test_freed_tensors_and_views_are_not_counted():
    with LiveElements() as live:
        first = torch.empty(10, device="meta")
        view = first[:5]
        del first
        kept = torch.empty(20, device="meta")
        del view
        last = torch.empty(5, device="meta")
    assert live.peak_elements == 30
    assert kept.shape[0] + last.shape[0] == 25


def test_values_that_do_not_exist_are_read_as_zero():
    with ReadsZero():
        assert torch.empty(1, device="meta").item() == 0
        assert torch.ones(1).item() == 1
