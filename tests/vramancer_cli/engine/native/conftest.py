"""Each test that asks for it runs on every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vramancer_cli.engine import native


def usable() -> list[int]:
    """The instruction sets that this machine has."""
    if not native.is_there():
        return []
    chosen = torch.ops.vramancer.isa()
    found: list[int] = []
    for number in range(len(native.INSTRUCTION_SETS)):
        try:
            torch.ops.vramancer.use_isa(number)
            found.append(number)
        except RuntimeError:
            continue
    torch.ops.vramancer.use_isa(chosen)
    return found


@pytest.fixture(params=usable(), ids=lambda number: native.INSTRUCTION_SETS[number])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[int]:
    chosen = torch.ops.vramancer.isa()
    torch.ops.vramancer.use_isa(request.param)
    yield request.param
    torch.ops.vramancer.use_isa(chosen)
