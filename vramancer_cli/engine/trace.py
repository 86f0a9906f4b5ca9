"""A dry run on `meta`: what each layer keeps per token and how much is alive at once, measured instead of assumed.

Must never touch real memory or know a family by name.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from transport.types import LayerRange
from vramancer_cli.engine import architecture
from vramancer_cli.engine.attention import Options
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.errors import ModelError

_SAMPLE_TOKENS = 16


class KvShape(NamedTuple):
    """What one layer keeps of one token: `heads` keys of `key_size` and values of `value_size` elements."""

    heads: int
    key_size: int
    value_size: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True)
class Trace:
    """`kv_shapes` by layer number; `live_elements`: the most that is alive at once in the layers, per token."""

    kv_shapes: dict[int, KvShape]
    live_elements: int


class _Recorder:
    """Stands where the KV cache will stand, and writes down what each layer brings."""

    def __init__(self) -> None:
        self.kv_shapes: dict[int, KvShape] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        if layer in self.kv_shapes:
            raise ModelError("The family attends twice in one layer, which cannot be paged yet.")
        self.kv_shapes[layer] = KvShape(key.shape[0], key.shape[2], value.shape[2])
        return query.new_empty(query.shape[1], query.shape[0], value.shape[2])


def trace_layers(checkpoint: Checkpoint, layers: LayerRange | None = None) -> Trace:
    """Run `layers` (default: all) once on meta. Raises ModelError for a family that cannot be paged.

    In bfloat16, which every kernel has a meta version for; what is counted does not depend on the dtype.
    """
    model = architecture.build(checkpoint, torch.bfloat16)
    if layers is not None:
        architecture.keep(model, layers, ends=False)
    recorder = _Recorder()
    hidden_size: int = model.config.get_text_config().hidden_size
    hidden = torch.empty(1, _SAMPLE_TOKENS, hidden_size, device="meta", dtype=torch.bfloat16)
    positions = torch.empty(1, _SAMPLE_TOKENS, device="meta", dtype=torch.int64)
    base = architecture.base_model(model)
    try:
        with torch.inference_mode(), LiveElements() as live:
            base(inputs_embeds=hidden, position_ids=positions, use_cache=False, paged=recorder)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ModelError(f"The family '{model.config.model_type}' cannot run in parts yet: {error}") from error
    _refuse_unpaged(recorder.kv_shapes, architecture.layers_of(model))
    return Trace(recorder.kv_shapes, -(-live.peak_elements // _SAMPLE_TOKENS) + hidden_size)


def refuse_hidden_work(model: PreTrainedModel, hidden_size: int) -> None:
    """Raises ModelError where the base model itself changes hidden states around its layers.

    `model` must be an empty shell (no layers, no ends) with its buffers filled: then hidden states have to come out
    of it as they went in, else every stage of a pipeline would apply the change once more.
    """
    hidden = torch.linspace(-1, 1, 3 * hidden_size).reshape(1, 3, hidden_size)
    positions = torch.arange(3)[None]
    with torch.inference_mode():
        output = architecture.base_model(model)(inputs_embeds=hidden, position_ids=positions, use_cache=False)
    if not torch.equal(output.last_hidden_state, hidden):
        raise ModelError(f"The family '{model.config.model_type}' works on hidden states between its layers.")


def _refuse_unpaged(kv_shapes: Mapping[int, KvShape], layers: torch.nn.ModuleList) -> None:
    kept = [index for index, layer in enumerate(layers) if not isinstance(layer, PipelineIdentityLayer)]
    missing = [index for index in kept if index not in kv_shapes]
    if missing:
        raise ModelError(f"Layer {missing[0]} has no attention that can be paged; this family cannot run yet.")


class LiveElements(TorchDispatchMode):
    """Counts the elements of all tensors alive that operations have made, and remembers the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_elements = 0
        self._live_elements = 0
        self._views: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._born(tensor)
        return result

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, elements = storage._cdata, storage.nbytes() // tensor.itemsize
        if self._views.setdefault(key, 0) == 0:
            self._live_elements += elements
            self.peak_elements = max(self.peak_elements, self._live_elements)
        self._views[key] += 1
        weakref.finalize(tensor, self._died, key, elements)

    def _died(self, key: int, elements: int) -> None:
        self._views[key] -= 1
        if self._views[key] == 0:
            self._live_elements -= elements
