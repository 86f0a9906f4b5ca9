"""Events are values, and `Event` names all of them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import get_args

import pytest

from vramancer_cli.cluster import events


def test_the_union_has_every_event_of_the_module() -> None:
    declared = {
        value for _, value in inspect.getmembers(events, inspect.isclass) if value.__module__ == events.__name__
    }
    assert set(get_args(events.Event)) == declared


def test_events_are_frozen() -> None:
    event = events.NodeLost("a", "unplugged", 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.reason = "else"  # type: ignore[misc]
