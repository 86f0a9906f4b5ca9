"""The engine as the runtime sees it: one device, its memory budget, and everything that is loaded under it.

The composition root of this room. Must never know who calls it or what a node is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from transport.contracts import TensorBuffer
from transport.errors import RemoteProtocolError
from transport.messages import ModelRef, Plan
from transport.types import ActivationFormat, DeviceFacts, LayerRange
from vramancer_cli.engine import activations, devices, tensors, weights
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.checkpoint import measured_files
from vramancer_cli.engine.ends import TorchEnds, load_ends
from vramancer_cli.engine.heap import giving_back
from vramancer_cli.engine.memory import MemoryBudget
from vramancer_cli.engine.ranges import layer_ranges
from vramancer_cli.engine.read_progress import Progress
from vramancer_cli.engine.seam import HIDDEN, SCALES
from vramancer_cli.engine.stage import PagedStage, load_stage
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.weight_files import ByteRange, WeightFile


class TorchEngine:
    """Implements the runtime's `Engine` with torch.

    `device`: auto, cuda:N, mps, xpu, cpu or cpu:N. `limit_bytes`: all that is ever reserved for weights, KV and
    workspace (default: a share of what is free now). `threads`: CPU threads for one operation (default: torch's own
    choice). Raises DeviceError.
    """

    def __init__(self, device: str = "auto", limit_bytes: int | None = None, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._chosen = devices.choose(device)
        self.device = devices.torch_device(self._chosen)
        self._budget = MemoryBudget(limit_bytes or devices.default_limit_bytes(self.device_facts()))
        self._layer_tokens = 0
        self._rounding = activations.RoundingCost(self.device)

    def device_facts(self) -> DeviceFacts:
        return msgspec.structs.replace(devices.facts(self.device), index=self._chosen.index)

    @property
    def limit_bytes(self) -> int:
        return self._budget.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes reserved from the budget now; safe from any thread."""
        return self._budget.used_bytes

    @property
    def layer_tokens(self) -> int:
        """(layer, token) pairs executed since start; written on the device's thread, safe to read from any."""
        return self._layer_tokens

    def unfold(self, gguf_file: Path, shelf: Path) -> Path:
        """A model folder for a GGUF file, kept on `shelf`. Raises ModelError."""
        from vramancer_cli.engine.gguf_folder import unfold  # only where there is GGUF

        return unfold(gguf_file, shelf)

    def digest(self, folder: Path) -> str:
        """ModelRef.digest of the checkpoint. Raises ModelError."""
        return weights.digest(folder)

    def model_facts(self, folder: Path, ref: ModelRef) -> ModelFacts:
        """Raises ModelError."""
        return weights.model_facts(folder, ref)

    def weight_files(self, folder: Path) -> tuple[WeightFile, ...]:
        """Raises ModelError."""
        return measured_files(folder)

    def layer_ranges(self, folder: Path, plan: Plan, layers: LayerRange) -> tuple[ByteRange, ...]:
        """Raises ModelError."""
        return layer_ranges(folder, plan, layers)

    def load_stage(
        self, folder: Path, plan: Plan, stage_index: int, progress: Progress, old: object = None
    ) -> PagedStage:
        """Raises OverLimitError before allocating anything over the limit, ModelError. `old`: see the contract."""
        assert old is None or isinstance(old, PagedStage)
        with giving_back():
            return load_stage(folder, plan, stage_index, self._budget, self.device, progress, self._count, old)

    def load_ends(self, folder: Path, plan: Plan, progress: Progress) -> TorchEnds:
        """Raises OverLimitError before allocating anything over the limit, ModelError."""
        with giving_back():
            return load_ends(folder, plan, self._budget, self.device, progress)

    def hand_over(self, boundary: Boundary, device: torch.device) -> Boundary:
        """To another device of this machine."""
        return boundary.to(device)

    def hidden_bytes(self, boundary: Boundary) -> int:
        """What the hidden states take as they are."""
        return boundary.hidden.nbytes

    def rounding_s(self, boundary: Boundary, form: ActivationFormat) -> float:
        """What rounding the hidden states takes here, and having them back, by a measure made once."""
        return self._rounding.seconds(form, boundary.hidden)

    def to_buffers(self, boundary: Boundary, form: ActivationFormat = "plain") -> tuple[TensorBuffer, ...]:
        """The hidden states in `form`, the wider dtypes first, as the wire wants them. Raises LocalProtocolError for
        one that may not cross it."""
        named = {HIDDEN: boundary.hidden, **boundary.beside}
        if form != "plain":
            named[HIDDEN], named[SCALES] = activations.rounded(boundary.hidden, form)
        widest_first = sorted(named.items(), key=lambda pair: -pair[1].itemsize)
        return tuple(tensors.to_buffer(name, tensor) for name, tensor in widest_first)

    def from_buffers(self, buffers: Mapping[str, TensorBuffer]) -> Boundary:
        """On the device. Raises RemoteProtocolError."""
        kinds = {HIDDEN: tensors.CODES} if SCALES in buffers else {}
        received = {
            name: tensors.from_buffer(buffer, kinds.get(name, tensors.PLAIN)).to(self.device)
            for name, buffer in buffers.items()
        }
        hidden, scales = received.pop(HIDDEN, None), received.pop(SCALES, None)
        if hidden is None:
            raise RemoteProtocolError("An activation came without hidden states.")
        return Boundary(hidden if scales is None else activations.restored(hidden, scales), received)

    def _count(self, layer_tokens: int) -> None:
        self._layer_tokens += layer_tokens


def open_engines(choices: Sequence[str], memory: Sequence[int]) -> list[TorchEngine]:
    """An engine for each chosen device; sizes in bytes, see `devices.limits_bytes`. Raises DeviceError."""
    chosen = devices.choose_all(choices)
    pairs = zip(chosen, devices.limits_bytes(chosen, memory), strict=True)
    return [TorchEngine(str(device), limit_bytes) for device, limit_bytes in pairs]
