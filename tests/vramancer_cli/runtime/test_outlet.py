"""What a stage's results cross a link in: the engine is real, the link's speed is said to be this or that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from msgspec.structs import replace

from tests.helpers.pipeline_bench import make_plan
from tests.helpers.wire_samples import OAK, hello
from transport.contracts import TensorBuffer
from transport.messages import Hello, LinkLoad, Message, Step
from transport.types import ActivationChoice
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.activation_format import FEATURES
from vramancer_cli.runtime.outlet import Outlet

PLAN = replace(make_plan((12_000, 12_000, 60_000)), dtype="bfloat16")
SLOW, FAST = 1_000_000, 10**12
CHUNK = torch.randn(256, 2048).bfloat16()


@dataclass
class Wire:
    """A DataSender that keeps what it is given."""

    bytes_per_s: int = 0
    hello: Hello = field(default_factory=lambda: hello(OAK, "oak", features=tuple(FEATURES)))
    sent: list[tuple[int, int, Message, Sequence[TensorBuffer]]] = field(default_factory=list)

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        self.sent.append((epoch, number, message, tensors))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine("cpu", limit_bytes=1 << 28, threads=1)


def outlet(wire: Wire, choice: ActivationChoice = "auto", *, relayed: bool = False) -> Outlet:
    return Outlet(replace(PLAN, activations=choice), OAK, wire, relayed=relayed)


def crosses_in(way: Outlet, engine: TorchEngine, stage: int = 1) -> str:
    return {buffer.spec.name: buffer.spec.dtype for buffer in way.buffers(engine, stage, Boundary(CHUNK))}[
        "hidden_states"
    ]


def test_a_slow_link_gets_int8_and_says_so(engine: TorchEngine) -> None:
    wire = Wire()
    way = outlet(wire)
    assert (crosses_in(way, engine), way.load()) == ("bfloat16", LinkLoad(OAK, 0, "plain"))
    wire.bytes_per_s = SLOW
    assert (crosses_in(way, engine), way.load()) == ("int8", LinkLoad(OAK, SLOW, "int8"))
    wire.bytes_per_s = FAST
    assert (crosses_in(way, engine), way.load()) == ("bfloat16", LinkLoad(OAK, FAST, "plain"))


def test_what_tokens_are_drawn_from_is_never_rounded(engine: TorchEngine) -> None:
    way = outlet(Wire(SLOW), "int4")
    assert crosses_in(way, engine) == "uint8"
    assert crosses_in(way, engine, stage=len(PLAN.stages)) == "bfloat16"


def test_an_end_that_knows_nothing_of_rounding_and_a_relay_get_it_plain(engine: TorchEngine) -> None:
    older = Wire(SLOW, hello(OAK, "oak", features=("relay",)))
    assert crosses_in(outlet(older, "int8"), engine) == "bfloat16"
    assert crosses_in(outlet(Wire(SLOW), "int8", relayed=True), engine) == "bfloat16"


def test_a_plain_plan_is_plain_and_a_frame_carries_its_step(engine: TorchEngine) -> None:
    wire = Wire(SLOW)
    way, step = outlet(wire, "plain"), Step(PLAN.epoch, 3, ())
    assert crosses_in(way, engine) == "bfloat16"
    way.send(1, step, ())
    epoch, number, message, _ = wire.sent[0]
    assert (epoch, number, getattr(message, "stage", None), getattr(message, "step", None)) == (PLAN.epoch, 3, 1, step)
