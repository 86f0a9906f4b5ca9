"""The seams of the pulse: what runtime needs from the engine below and gives to serving above. Types only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from transport.contracts import TensorBuffer
from transport.messages import ModelRef, Plan, Step
from transport.types import ActivationFormat, DeviceFacts, LayerRange, NodeId
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.readout import Pooling, Readout, RowOutput, TokenScore
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.models.weight_files import ByteRange, WeightFile
from vramancer_cli.telemetry.cluster_trace import ClusterTrace

Hidden = Any
"""What crosses a cut of the model for a step's tokens: hidden states, and what else later layers need. The runtime
carries it and never looks inside."""

Progress = Callable[[int, int], None]
"""(loaded bytes, total bytes), called on the loading thread."""


class Stage(Protocol):
    """A shard with its KV cache. Every method on the device's thread."""

    @property
    def weights_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...

    def execute(self, step: Step, hidden: Hidden, /) -> Hidden:
        """[step.token_count, hidden] in; the same out, but from the plan's last stage only the outputs asked for.

        Raises RemoteProtocolError for a row that contradicts the block tables.
        """
        ...

    def close(self) -> None:
        """Give all memory back to the budget."""
        ...


class Ends(Protocol):
    """Embedding, final norm, output head and sampler. Every method on the device's thread."""

    def embed(self, step: Step, token_ids: Sequence[int]) -> Hidden:
        """The step's tokens, in row order."""
        ...

    def read(self, rows: Hidden, readouts: Sequence[Readout], /) -> list[RowOutput]:
        """Outputs of the last stage, row after row [sum of outputs, hidden], and their readouts in; an answer each."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """The torch room as the runtime sees it: one device with a memory budget."""

    def device_facts(self) -> DeviceFacts: ...

    @property
    def limit_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int:
        """Bytes reserved from the budget now; safe from any thread."""
        ...

    @property
    def layer_tokens(self) -> int:
        """(layer, token) pairs executed since start; safe from any thread."""
        ...

    def digest(self, folder: Path) -> str: ...

    def unfold(self, gguf_file: Path, shelf: Path) -> Path:
        """A model folder for a GGUF file, kept on `shelf`. Raises ModelError."""
        ...

    def model_facts(self, folder: Path, ref: ModelRef) -> ModelFacts:
        """Raises ModelError."""
        ...

    def weight_files(self, folder: Path) -> Sequence[WeightFile]:
        """In the order of the digest. Raises ModelError."""
        ...

    def layer_ranges(self, folder: Path, plan: Plan, layers: LayerRange) -> Sequence[ByteRange]:
        """The bytes that `load_stage` will read for `layers`; config and headers suffice for it. Raises ModelError."""
        ...

    def load_stage(
        self, folder: Path, plan: Plan, stage_index: int, progress: Progress, old: Stage | None = None
    ) -> Stage:
        """Raises OverLimitError before allocating anything over the limit, ModelError.

        What the plan still wants of `old`, a stage of this engine, is kept and not read again; `old` is closed in any
        case, also when this raises.
        """
        ...

    def load_ends(self, folder: Path, plan: Plan, progress: Progress) -> Ends: ...

    @property
    def device(self) -> Any:
        """For another engine's `hand_over`."""
        ...

    def hand_over(self, hidden: Hidden, device: Any, /) -> Hidden:
        """The same on another engine's device. On the thread of this one."""
        ...

    def hidden_bytes(self, hidden: Hidden, /) -> int:
        """What the hidden states take as they are."""
        ...

    def rounding_s(self, hidden: Hidden, form: ActivationFormat, /) -> float:
        """Seconds for rounding them, and having them back, as measured here. On the device's thread."""
        ...

    def to_buffers(self, hidden: Hidden, form: ActivationFormat, /) -> tuple[TensorBuffer, ...]:
        """Among them "hidden_states", in `form`; all have one row per token. In the order in which they may cross
        the wire."""
        ...

    def from_buffers(self, buffers: Mapping[str, TensorBuffer]) -> Hidden:
        """Raises RemoteProtocolError for a wrong shape, dtype or non-finite values."""
        ...


class DeviceExecutor(Protocol):
    """Runs work in order on a device's one thread (in simulations: on the loop, after a delay)."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], object]) -> None:
        """`done(result, None)` or `done(None, error)` is called on the device's thread. Callable from any thread."""
        ...

    async def run(self, work: Callable[[], Any]) -> Any:
        """The same, awaited on the event loop."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What serving asks for. `prompt` is never empty; prompt + max_tokens fits the context (serving checks).

    `choices`: so many answers, the second with the sampling's seed + 1, and so on. `prompt_logprobs`: those of the
    prompt's own tokens too, each with so many of the likeliest; None: none. Only then may max_tokens be 0. A request
    of a higher `priority` goes before those of a lower one.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    choices: int = 1
    prompt_logprobs: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A prompt, never empty and within the context, whose final hidden states are to be made one vector."""

    request_id: str
    prompt: tuple[int, ...]
    pooling: Pooling = "mean"


@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens of one choice; its last item has a finish reason. A stop token is not among `token_ids`.

    `scores`: one per token, where log-probabilities were asked for. `prompt_scores`: of the prompt's tokens from the
    second on, a part at a time and all before the first token; of choice 0 only.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None = None
    choice: int = 0
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()


class Deployment(Protocol):
    """A model that can be asked. `folder` holds tokenizer.json and the chat template."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def created_s(self) -> int: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
        """Ends when every choice has. Closing the generator aborts the request.

        Raises NotReadyError, QueueFullError, NodeLostError.
        """
        ...

    def drop(self, request_id: str, choice: int) -> None:
        """Nobody wants more of this choice; what was made of it may still come. The others go on.

        For whoever iterates the answers, between two of them.
        """
        ...

    async def embed(self, request: EmbeddingRequest) -> tuple[float, ...]:
        """The prompt's pooled final hidden states, [hidden], not normalised. Raises as `generate`."""
        ...


class Registry(Protocol):
    """The models by name."""

    def models(self) -> Sequence[Deployment]: ...

    def find(self, name: str) -> Deployment | None: ...


@dataclass(frozen=True, slots=True)
class Invitation:
    code: str
    valid_s: float


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`token` is a secret, shown once. `id` is what logs call it."""

    token: str = field(repr=False)
    id: str
    valid_s: float
    reusable: bool


class Admin(Protocol):
    """What the API may ask of the node beyond answering."""

    async def status(self, *, fresh: bool = False) -> ClusterStatus:
        """`fresh` asks every worker for its figures first (at most 1 s)."""
        ...

    async def invite(self) -> Invitation:
        """Raises UsageError on a node that is not the head."""
        ...

    async def make_token(self, *, reusable: bool, hours: float) -> JoinToken:
        """A join token for scripts. Raises UsageError, also on a node that is not the head."""
        ...

    async def remove(self, node: str) -> NodeId:
        """Remove a node, by name or id, from the cluster for ever. Raises UsageError, as `make_token`."""
        ...

    async def trace(self, seconds: float) -> ClusterTrace:
        """What all nodes did in the last `seconds`. Raises UsageError on a node that is not the head."""
        ...

    async def drain(self, node: str) -> NodeId:
        """Have other nodes take its layers over, and wait for it. Raises UsageError, DoesNotFitError, NotReadyError."""
        ...


__all__ = [
    "Admin", "Deployment", "DeviceExecutor", "EmbeddingRequest", "Ends", "Engine", "Generated", "GenerationRequest",
    "Hidden", "Invitation", "JoinToken", "Progress", "Registry", "Stage",
]  # fmt: skip
