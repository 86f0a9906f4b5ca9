from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from tests.helpers.stepping import Driver, Request, make_plan
from vramancer_cli.engine import devices, trial
from vramancer_cli.engine.devices import DeviceError
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.engine.trial import WrongResultError
from vramancer_cli.errors import ModelError

CPU = devices.facts(torch.device("cpu"))


class SlightlyOff(TorchFunctionMode):
    """A device that multiplies floating-point numbers almost right."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.matmul and result.is_floating_point():
            result[-1, -1] += 1
        return result


def test_versions_are_those_that_are_imported() -> None:
    assert trial.versions() == {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_exact_in_every_dtype(dtype: str) -> None:
    trial.multiply(CPU, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_is_seen(dtype: str) -> None:
    with SlightlyOff(), pytest.raises(WrongResultError, match=f"cpu multiplied {dtype}") as raised:
        trial.multiply(CPU, dtype)
    assert "--device" in raised.value.hint


@pytest.mark.parametrize("length", [1, 16])
def test_greedy_tokens_are_those_of_the_stages(llama: Path, engine: TorchEngine, length: int) -> None:
    request = Request(prompt=list(range(3, 3 + length)), max_tokens=18)
    driver = Driver(engine, llama, make_plan(engine, llama, 2))
    driver.run([request])
    driver.close()
    assert trial.greedy_tokens(llama, request.prompt, 18, "cpu") == request.generated


def test_what_cannot_run_is_a_named_error(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        trial.greedy_tokens(tmp_path, [1], 1, "cpu")
    with pytest.raises(DeviceError):
        trial.greedy_tokens(llama, [1], 1, "cuda:77")
