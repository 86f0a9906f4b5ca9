from __future__ import annotations

from pathlib import Path

from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.registry import Registry


async def test_models_are_found_by_their_exact_name() -> None:
    small, large = (Generation(name, Path(), 256, 0, lambda: None) for name in ("org/small", "org/large"))
    registry = Registry([small, large])
    assert registry.models() == (small, large)
    assert registry.find("org/large") is large
    assert registry.find("large") is None


def test_a_worker_has_none() -> None:
    assert Registry().models() == ()
    assert Registry().find("") is None
