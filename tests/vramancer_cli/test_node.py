"""The composition root's own small parts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vramancer_cli import node
from vramancer_cli.cluster.state import State


@pytest.mark.parametrize(("running", "waiting", "busy"), [(0, 0, False), (1, 0, True), (0, 1, True), (2, 3, True)])
def test_weights_are_handed_out_slowly_as_soon_as_somebody_asks(running: int, waiting: int, busy: bool) -> None:
    """A request counts as waiting when it comes, and nobody is told anew when it begins to run."""
    inbox = node._Inbox()
    inbox.coordinator = SimpleNamespace(state=State(running=running, waiting=waiting, serving_epoch=1))  # type: ignore[assignment]
    assert inbox.is_busy() == busy


def test_weights_are_handed_out_as_fast_as_they_go_while_requests_wait_for_them() -> None:
    inbox = node._Inbox()
    inbox.coordinator = SimpleNamespace(state=State(running=0, waiting=3, serving_epoch=None))  # type: ignore[assignment]
    assert not inbox.is_busy()
