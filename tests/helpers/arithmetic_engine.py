"""An Engine without torch for simulations: every layer mixes a token's value with all earlier ones of its sequence.

A token that took a wrong way, came out of order or met another sequence's cache gives another answer, so the answers
of a simulated cluster can be compared with `answer`, which computes them in one place.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transport.contracts import TensorBuffer
from transport.errors import RemoteProtocolError
from transport.messages import ModelRef, Plan, Step
from transport.types import ActivationFormat, DeviceFacts, TensorSpec
from vramancer_cli.engine.block_tables import BlockTables, PlacedRow
from vramancer_cli.errors import OverLimitError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.readout import Readout, RowOutput, TokenScore
from vramancer_cli.runtime.data_links import HIDDEN

MODULUS = (1 << 31) - 1
VOCABULARY = 1000
REF = ModelRef("arithmetic", "builtin", "arithmetic", "0" * 64)


def facts(layers: int = 6, layer_parameters: int = 1000) -> ModelFacts:
    return ModelFacts(
        ref=REF,
        family="arithmetic",
        hidden_size=1,
        vocab_size=VOCABULARY,
        context_tokens=256,
        checkpoint_dtype="float32",
        layer_parameters=(layer_parameters,) * layers,
        ends_parameters=100,
        kv_elements_per_token=(1,) * layers,
        workspace_elements_per_token=1,
    )


def mix(value: int, item: int) -> int:
    """What a layer makes of one more item, given what it made of all before; a layer begins with its number + 1."""
    return (value * 31 + item) % MODULUS


def answer(prompt: Sequence[int], count: int, layers: int = 6) -> list[int]:
    """The tokens that follow `prompt`, computed without any cluster."""
    tokens = list(prompt)
    values = [layer + 1 for layer in range(layers)]
    passed = 0
    for _ in range(count):
        for token in tokens[passed:]:
            row = token + 1
            for layer in range(layers):
                row = values[layer] = mix(values[layer], row)
        passed = len(tokens)
        tokens.append(row % VOCABULARY)
    return tokens[len(prompt) :]


def final_rows(tokens: Sequence[int], layers: int = 6) -> list[int]:
    """What the last layer makes of each token, computed without any cluster."""
    values = [layer + 1 for layer in range(layers)]
    rows: list[int] = []
    for token in tokens:
        row = token + 1
        for layer in range(layers):
            row = values[layer] = mix(values[layer], row)
        rows.append(row)
    return rows


class ArithmeticStage:
    def __init__(self, engine: ArithmeticEngine, plan: Plan, stage: int) -> None:
        self._engine = engine
        self.layers = self._layers = plan.stages[stage].layers
        self._last = stage == len(plan.stages) - 1
        self._tables = BlockTables(plan.block_count, plan.block_tokens, plan.context_tokens)
        self._block_tokens = plan.block_tokens
        # By block: after each of its tokens, what each layer made of all tokens so far.
        self._blocks: dict[int, list[list[int]]] = {}
        self.weights_bytes = plan.stages[stage].weights_bytes
        self.kv_bytes = plan.stages[stage].kv_bytes
        self.bytes = plan.stages[stage].total_bytes

    def execute(self, step: Step, hidden: list[int]) -> list[int]:
        assert len(hidden) == step.token_count
        placed = self._tables.apply(step)
        if not len(self._tables):
            self._tables.check_integrity()
        for copy in step.copies:
            self._blocks[copy.target] = list(self._blocks[copy.source])
        out: list[int] = []
        rest = list(hidden)
        for row in placed:
            values = [self._pass(row, position, rest.pop(0)) for position in range(row.start, row.end)]
            out.extend(values[len(values) - row.outputs :] if self._last else values)
        self._engine.layer_tokens += step.token_count * len(self._layers)
        return out

    def _pass(self, row: PlacedRow, position: int, value: int) -> int:
        """One token through all layers, behind what the cache holds of the token before it."""
        before = [layer + 1 for layer in range(self._layers.start, self._layers.end)]
        if position:
            before = self._blocks[row.blocks[(position - 1) // self._block_tokens]][(position - 1) % self._block_tokens]
        after: list[int] = []
        for item in before:
            value = mix(item, value)
            after.append(value)
        block = self._blocks.setdefault(row.blocks[position // self._block_tokens], [])
        del block[position % self._block_tokens :]
        block.append(after)
        return value

    def close(self) -> None:
        self._engine.used_bytes -= self.bytes
        self.bytes = 0


class ArithmeticEnds:
    def __init__(self, engine: ArithmeticEngine, plan: Plan) -> None:
        self._engine = engine
        self.bytes = plan.ends_bytes

    def embed(self, step: Step, token_ids: Sequence[int]) -> list[int]:
        return [token + 1 for token in token_ids]

    def read(self, rows: list[int], readouts: Sequence[Readout]) -> list[RowOutput]:
        """A token is its row; its log-probability is minus its number, and a sum of outputs is their sum."""
        assert len(rows) == sum(readout.outputs for readout in readouts)
        left = iter(rows)
        return [_read([next(left) for _ in range(readout.outputs)], readout) for readout in readouts]

    def close(self) -> None:
        self._engine.used_bytes -= self.bytes
        self.bytes = 0


def _read(rows: list[int], readout: Readout) -> RowOutput:
    drawn = [(row % VOCABULARY, draw) for row, draw in zip(reversed(rows), reversed(readout.draws), strict=False)][::-1]
    return RowOutput(
        tuple(token for token, _ in drawn),
        tuple(TokenScore(token, -float(token)) for token, draw in drawn if draw.sampling.top_logprobs is not None),
        tuple(TokenScore(target, -float(row % VOCABULARY)) for row, target in zip(rows, readout.targets, strict=False)),
        (float(sum(rows)),) if readout.pooled else (),
    )


class ArithmeticEngine:
    """`present_bytes`: what the machine really has, when less than the limit that it promised.

    `index` tells the devices of one node apart. `layers_loaded` counts those that had to be read. `loads_badly` is
    raised by every load; `own_digest` is that of the checkpoint on this machine.
    """

    def __init__(self, limit_bytes: int, present_bytes: int | None = None, index: int = 0) -> None:
        self.index = index
        self.limit_bytes = limit_bytes
        self.present_bytes = limit_bytes if present_bytes is None else present_bytes
        self.loads_badly: Exception | None = None
        self.own_digest = REF.digest
        self.used_bytes = 0
        self.layer_tokens = 0
        self.handed_over = 0
        self.layers_loaded = 0

    def device_facts(self) -> DeviceFacts:
        return DeviceFacts("cpu", self.index, "arithmetic", self.limit_bytes, self.limit_bytes)

    @property
    def device(self) -> str:
        return f"device {self.index}"

    def hand_over(self, hidden: list[int], device: str) -> list[int]:
        assert device != self.device
        self.handed_over += 1
        return list(hidden)

    def digest(self, folder: Path) -> str:
        return self.own_digest

    def model_facts(self, folder: Path, ref: ModelRef) -> ModelFacts:
        return facts()

    def load_stage(
        self,
        folder: Path,
        plan: Plan,
        stage: int,
        progress: Callable[[int, int], None],
        old: ArithmeticStage | None = None,
    ) -> ArithmeticStage:
        layers = plan.stages[stage].layers
        kept = set[int]()
        if old is not None and old.bytes:
            kept = set(range(old.layers.start, old.layers.end))
            old.close()
        self.layers_loaded += len(set(range(layers.start, layers.end)) - kept)
        self._reserve(plan.stages[stage].total_bytes)
        progress(1, 1)
        return ArithmeticStage(self, plan, stage)

    def load_ends(self, folder: Path, plan: Plan, progress: Callable[[int, int], None]) -> ArithmeticEnds:
        self._reserve(plan.ends_bytes)
        return ArithmeticEnds(self, plan)

    def hidden_bytes(self, hidden: list[int]) -> int:
        return 8 * len(hidden)

    def rounding_s(self, hidden: list[int], form: ActivationFormat) -> float:
        raise AssertionError("whole numbers are never rounded")

    def to_buffers(self, hidden: list[int], form: ActivationFormat = "plain") -> tuple[TensorBuffer, ...]:
        assert form == "plain"
        data = struct.pack(f"<{len(hidden)}q", *hidden)
        return (TensorBuffer(TensorSpec(HIDDEN, "int64", (len(hidden), 1), 0), memoryview(data)),)

    def from_buffers(self, buffers: Mapping[str, TensorBuffer]) -> list[int]:
        buffer = buffers[HIDDEN]
        if buffer.spec.dtype != "int64" or len(buffer.spec.shape) != 2 or buffer.spec.shape[1] != 1:
            raise RemoteProtocolError(f"Hidden states of {buffer.spec.dtype} {buffer.spec.shape} came.")
        return list(struct.unpack(f"<{buffer.spec.shape[0]}q", buffer.data))

    def _reserve(self, needed_bytes: int) -> None:
        if self.loads_badly is not None:
            raise self.loads_badly
        free_bytes = self.present_bytes - self.used_bytes
        if needed_bytes > free_bytes:
            raise OverLimitError("too much", needed_bytes=needed_bytes, present_bytes=free_bytes)
        self.used_bytes += needed_bytes


class LoopDevice:
    """A DeviceExecutor on the event loop: each piece of work takes `work_s` of virtual time, one after the other."""

    def __init__(self, work_s: float) -> None:
        self.work_s = work_s
        self._free_at_s = 0.0
        self._loop = asyncio.get_running_loop()

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self._free_at_s = max(self._free_at_s, self._loop.time()) + self.work_s
        self._loop.call_at(self._free_at_s, self._work, work, done)

    async def run(self, work: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error else future.set_result(result)

        self.submit(work, done)
        return await future

    def close(self) -> None:
        pass

    def _work(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)
