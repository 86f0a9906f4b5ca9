"""What tests of GGUF models have in common: a prompt, sizes, and what a loaded stage holds and says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.stepping import Driver, Request, make_plan
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.siblings import SharedProduct
from vramancer_cli.engine.torch_engine import TorchEngine

MARGIN = 1e-3
PROMPT = [(11 * k * k + 5 * k) % 382 + 1 for k in range(60)]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
"""K-quants come in blocks of 256."""
TINY = {"num_hidden_layers": 2}


def answered(engine: TorchEngine, folder: Path, **choices: Any) -> list[int]:
    driver = Driver(engine, folder, make_plan(engine, folder, 2, **choices))
    request = Request(list(PROMPT), 12)
    driver.run([request])
    driver.close()
    return request.generated


def second_roundings(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    events = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [event for event in events if event["event"] == "weights rounded a second time"]


def held_bytes(shard: Shard) -> int:
    held = (QuantisedLinear, SharedProduct)
    kernels = [module._kernel for module in shard._model.modules() if isinstance(module, held)]
    return sum(parameter.nbytes for parameter in shard._model.parameters()) + tensor_bytes(kernels)


def tensor_bytes(*roots: Any) -> int:
    """Of all tensors within `roots`, each counted once."""
    seen: dict[int, int] = {}
    todo = list(roots)
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            seen[value.data_ptr()] = value.nbytes
        elif isinstance(value, list):
            todo += value
        elif dataclasses.is_dataclass(value):
            todo += [getattr(value, field.name) for field in dataclasses.fields(value)]
        elif hasattr(value, "__dict__"):
            todo += vars(value).values()
    return sum(seen.values())
