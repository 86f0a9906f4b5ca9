"""One value of every message, with the tensors that ride along: what the golden files hold. Never change a value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transport.codec import encode
from transport.contracts import TensorBuffer
from transport.messages import (
    Activation,
    AheadProgress,
    AskModel,
    AskPiece,
    AskSpans,
    Assign,
    AssignRefused,
    BadFrames,
    BlockCopy,
    DeviceLoad,
    FetchLayersAhead,
    FetchProgress,
    Goodbye,
    Hello,
    Join,
    Leaving,
    LinkSpeed,
    LoadProgress,
    Message,
    ModelFiles,
    ModelRef,
    NodeLoad,
    NotServed,
    Piece,
    Ping,
    Plan,
    Pong,
    Refused,
    Release,
    Removed,
    Renew,
    Renewed,
    Roll,
    Span,
    Spans,
    StageFailed,
    StagePlan,
    StageReady,
    StatusShare,
    Step,
    StepRow,
    WeightFileSize,
    Welcome,
)
from transport.types import Address, DeviceFacts, LayerRange, NodeFacts, OfferedDevice, TensorSpec, Versions

GOLDEN: Final = Path(__file__).parent.parent / "transport" / "golden"
ELM: Final = "0123456789abcdef" * 2
OAK: Final = "fedcba9876543210" * 2
VERSIONS: Final = Versions("0.1.0", "2.13.0", "5.23.0")
CPU: Final = DeviceFacts("cpu", 0, "Zen 5", 16 << 30, 12 << 30)
CUDA: Final = DeviceFacts("cuda", 1, "RTX 4090", 24 << 30, 23 << 30)
PLAN: Final = Plan(
    epoch=3,
    model=ModelRef("guide", "builtin", "models/guide", "ab" * 32),
    dtype="bfloat16",
    context_tokens=2048,
    block_tokens=16,
    block_count=512,
    max_step_tokens=256,
    ends=ELM,
    ends_bytes=1 << 20,
    state_slots=4,
    stages=(
        StagePlan(ELM, CPU, LayerRange(0, 3), 3 << 20, 2 << 20, 1 << 20),
        StagePlan(OAK, CUDA, LayerRange(3, 8), 5 << 20, 4 << 20, 1 << 20, position=1),
    ),
    reasons={ELM: "Holds both ends.", OAK: "Has the most free memory."},
)
STEP: Final = Step(
    epoch=3,
    number=7,
    rows=(StepRow(11, 0, 2, (0,), ((4, 5),), 0), StepRow(12, 40, 1, (2,), ((),), 1)),
    ended=(9, 10),
    token_ids=(1, 2, 3),
    copies=(BlockCopy(0, 4, 6),),
)


@dataclass(frozen=True)
class Sample:
    message: Message
    epoch: int = 0
    number: int = 0
    tensors: tuple[TensorBuffer, ...] = ()

    def frame(self) -> bytes:
        head, payload = encode(self.epoch, self.number, self.message, self.tensors)
        return b"".join([head, *payload])


def tensor(name: str, dtype: str, shape: tuple[int, ...], data: bytes, offset: int = 0) -> TensorBuffer:
    return TensorBuffer(TensorSpec(name, dtype, shape, offset), memoryview(data))


def hello(node: str = ELM, name: str = "elm", **changes: object) -> Hello:
    values: dict[str, object] = {"major": 1, "minor": 0, "kind": "control", **changes}
    return Hello(versions=VERSIONS, node=node, name=name, **values)  # type: ignore[arg-type]


SAMPLES: Final[tuple[Sample, ...]] = (
    Sample(Hello(1, 0, VERSIONS, ELM, "elm", "control", ("relay",))),
    Sample(Goodbye("stopping")),
    Sample(
        Join(
            NodeFacts(
                OAK,
                "oak",
                "Linux",
                (OfferedDevice(CPU, 8 << 30), OfferedDevice(CUDA, 20 << 30)),
                (Address("192.0.2.7", 5001), Address("fe80::1", 5001)),
                VERSIONS,
            )
        )
    ),
    Sample(Welcome("c1" * 32, ELM, (Address("elm.local", 5001),), 1.0)),
    Sample(Refused("The versions differ.", "Update oak.")),
    Sample(Ping(41)),
    Sample(Pong(41, NodeLoad((DeviceLoad(1 << 30, 456), DeviceLoad(7 << 30, 123456)), 789))),
    Sample(Assign(PLAN, 1, {ELM: (Address("192.0.2.1", 5001),), OAK: ()})),
    Sample(LoadProgress(3, 1 << 20, 5 << 20)),
    Sample(StageReady(3, 5 << 20, 4 << 20, True)),
    Sample(AssignRefused(3, 9 << 30, 8 << 30, "Another program took memory.", 1)),
    Sample(Release(2)),
    Sample(StageFailed(3, 7, "A row contradicts the block table.")),
    Sample(
        Activation(1, STEP),
        epoch=3,
        number=7,
        tensors=(
            tensor("scales", "float32", (3, 1), bytes(range(12))),
            tensor("hidden_states", "int8", (3, 5), bytes(range(100, 115)), offset=12),
        ),
    ),
    Sample(StatusShare(b'{"state":"ready"}')),
    Sample(Roll((OAK,), 1_800_000_000.5)),
    Sample(Removed()),
    Sample(Renew(bytes(range(48, 58)))),
    Sample(Renewed(bytes(range(65, 75)))),
    Sample(AskModel("ab" * 32)),
    Sample(ModelFiles(700, (WeightFileSize(5 << 30, 4096), WeightFileSize(3 << 30, 2048)))),
    Sample(AskPiece(2, 4096, 1 << 20, bytes(range(32)))),
    Sample(Piece(bytes(range(32))), tensors=(tensor("bytes", "uint8", (5,), b"piece"),)),
    Sample(NotServed("The master serves another model.")),
    Sample(FetchProgress(3, 1 << 20, 5 << 20)),
    Sample(Leaving()),
    Sample(AskSpans(4, 2.5)),
    Sample(Spans(4, (Span("compute", 7, 1.25, 1.5, 1, 2, 3, 40, 38), Span("send", 7, 1.5, 1.75)), True)),
    Sample(LinkSpeed(125_000_000)),
    Sample(BadFrames(3, OAK, "A frame header arrived damaged.")),
    Sample(FetchLayersAhead(PLAN, (LayerRange(0, 1), LayerRange(3, 4)))),
    Sample(AheadProgress(3, 1 << 20, 5 << 20)),
)
