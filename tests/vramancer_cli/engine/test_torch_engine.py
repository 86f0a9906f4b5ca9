from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.stepping import Driver, Request, make_plan
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.devices import DeviceError
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import NonFiniteError
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import Engine


def test_it_is_the_engine_that_the_runtime_knows(engine: TorchEngine):
    known: Engine = engine
    assert known.device_facts().kind == "cpu"
    assert (known.used_bytes, known.layer_tokens) == (0, 0)


def test_without_a_limit_it_takes_a_share_of_what_is_free():
    free_bytes = psutil.virtual_memory().available
    assert 0.5 * free_bytes < TorchEngine("cpu").limit_bytes < 0.9 * free_bytes


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(DeviceError):
        TorchEngine("cuda:77")


def test_threads_are_as_told():
    TorchEngine("cpu", threads=1)
    assert torch.get_num_threads() == 1


def test_layer_tokens_sum_to_layers_times_tokens(engine: TorchEngine, llama: Path):
    driver = Driver(engine, llama, make_plan(engine, llama, 3))
    driver.run([Request(prompt=list(range(11)), max_tokens=5)])
    assert engine.layer_tokens == 8 * (11 + 5 - 1)
    driver.close()
    assert engine.used_bytes == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_and_splits_without_a_change(engine: TorchEngine, llama: Path, dtype: str):
    texts: list[list[int]] = []
    for stages in (1, 4):
        driver = Driver(engine, llama, make_plan(engine, llama, stages, dtype=dtype))
        request = Request(prompt=list(range(40)), max_tokens=8)
        driver.run([request])
        driver.close()
        texts.append(request.generated)
    assert texts[0] == texts[1]


def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(engine: TorchEngine, llama: Path):
    def asked() -> Request:
        return Request(list(range(20, 33)), 12, joins_at=2, sampling=Sampling(0.8, 0.95, seed=7))

    alone, crowded = asked(), asked()
    others = [Request(list(range(i, 3 * i)), 15, i, Sampling(1.0, 1.0, seed=i)) for i in range(1, 6)]
    for requests in ([alone], [*others[:3], crowded, *others[3:]]):
        driver = Driver(engine, llama, make_plan(engine, llama, 2))
        driver.run(requests)
        driver.close()
    assert crowded.generated == alone.generated
    assert crowded.generated != others[0].generated[:12]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_leave_this_node(engine: TorchEngine, value: float):
    hidden = torch.ones(3, 4)
    assert engine.to_buffers(Boundary(hidden, {"ids": torch.ones(3, 1, dtype=torch.int64)}))
    hidden[1, 2] = value
    with pytest.raises(NonFiniteError, match="not finite"):
        engine.to_buffers(Boundary(hidden, {}))
