"""A dry run on `meta`: what each layer keeps per token and how much is alive at once, measured instead of assumed.

Must never touch real memory or know a family by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils.weak import TensorWeakRef
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from transport.types import LayerRange
from vramancer_cli.engine import architecture
from vramancer_cli.engine.attention import Options
from vramancer_cli.engine.calls import SAMPLE_TOKENS, Forward, watch_calls
from vramancer_cli.engine.checkpoint import Checkpoint, open_checkpoint
from vramancer_cli.engine.dry_run import LiveElements, ReadsZero
from vramancer_cli.engine.seam import DRY_DTYPE, Seams
from vramancer_cli.engine.sequence_cache import SequenceCache
from vramancer_cli.engine.siblings import Siblings, watching
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line

_LIVE_TOKENS: Final = 16


class KvShape(NamedTuple):
    """What one cache layer keeps of one token: `heads` keys of `key_size` and values of `value_size` elements.

    The keys of a layer's indexer are a cache layer of their own, `index_layer` of it, whose values have no elements.
    """

    heads: int
    key_size: int
    value_size: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_size + self.value_size)

    @property
    def vectors(self) -> int:
        """Keys and values, each of which has a scale where the cache is quantised."""
        return 2 * self.heads


@dataclass(frozen=True, slots=True)
class Trace:
    """What a dry run shows of a model.

    `ragged`: several sequences may pass the layers in one row, our attention keeps them apart; else each sequence
    passes them alone, with the family's own attention and cache of `cache_kind`.
    `kv_shapes` by cache layer (a decoder layer may have several); `decoder_layers`: whose they are. `same_as`: cache
    layers that attend to the keys and values of an earlier one. `windows`: how many tokens back a cache layer looks,
    where not all. `states` by decoder layer: elements of a sequence's
    state, and how many more with each token. `live_elements`: the most that is alive at once in the layers, per token.
    `siblings` by decoder layer: linear layers that are called with one and the same tensor.
    """

    seams: Seams
    ragged: bool
    cache_kind: type[Cache]
    kv_shapes: Mapping[int, KvShape]
    decoder_layers: Mapping[int, int]
    same_as: Mapping[int, int]
    windows: Mapping[int, int]
    states: Mapping[int, tuple[int, int]]
    live_elements: int
    siblings: Mapping[int, Siblings] = field(default_factory=dict[int, Siblings])

    def kv_shapes_in(self, layers: LayerRange) -> dict[int, KvShape]:
        """Of the cache layers that the decoder layers `layers` have: of those that are the same only the first."""
        owned = [index for index, layer in self.decoder_layers.items() if layers.start <= layer < layers.end]
        keepers = self.keepers_in(layers)
        return {index: self.kv_shapes[index] for index in owned if keepers.get(index, index) == index}

    def keepers_in(self, layers: LayerRange) -> dict[int, int]:
        """Of the cache layers in `layers` that attend to another one's keys and values: the one there that keeps them.

        That is the first of them, whether or not the layer that makes the keys and values is there.
        """
        owned = [index for index, layer in self.decoder_layers.items() if layers.start <= layer < layers.end]
        firsts: dict[int, int] = {}
        for index in owned:
            firsts.setdefault(self.same_as.get(index, index), index)
        return {index: firsts[source] for index, source in self.same_as.items() if index in owned}

    def kv_elements(self, layer: int) -> int:
        """Per token of decoder layer `layer`, wherever the cuts are."""
        shapes = [self.kv_shapes[index].elements for index, owner in self.decoder_layers.items() if owner == layer]
        return sum(shapes) + self.states.get(layer, (0, 0))[1]

    def looks_back(self, index: int) -> int | None:
        """How many tokens back anybody looks who attends to the keys and values of cache layer `index`; None: all.

        Whoever runs row by row is handed all tokens, whatever its layers then leave out.
        """
        source = self.same_as.get(index, index)
        readers = [source, *(other for other, kept in self.same_as.items() if kept == source)]
        windows = [self.windows.get(reader, 0) for reader in readers]
        return max(windows) if self.ragged and all(windows) else None

    def window_shapes(self, layer: int, window_tokens: int) -> list[KvShape]:
        """Of what decoder layer `layer` keeps, the part that nobody needs behind a window of so many tokens."""
        own = (index for index, owner in self.decoder_layers.items() if owner == layer)
        return [self.kv_shapes[index] for index in own if self.looks_back(index) == window_tokens]

    def kv_vectors(self, layer: int) -> int:
        """Per token of decoder layer `layer`, wherever the cuts are."""
        return sum(self.kv_shapes[index].vectors for index, owner in self.decoder_layers.items() if owner == layer)

    @property
    def window_sizes(self) -> tuple[int, ...]:
        """Every length of window, in tokens."""
        return tuple(sorted({window for index in self.kv_shapes if (window := self.looks_back(index))}))

    def state_elements(self, layer: int) -> int:
        """Per sequence of decoder layer `layer`."""
        return self.states.get(layer, (0, 0))[0]


def trace_layers(checkpoint: Checkpoint) -> Trace:
    """Run all layers on meta, in both ways. Raises ModelError for a family that can be run in neither.

    What is counted does not depend on the dtype.
    """
    return _traced(checkpoint.folder, checkpoint.digest)


_KEPT_TRACES: Final = 4


@lru_cache(maxsize=_KEPT_TRACES)
def _traced(folder: Path, _digest: str) -> Trace:
    """Kept for a while: facts, shards and ends of one checkpoint ask for the same."""
    patched: Any = symbolic_shapes
    with patched.patch(meta_nonzero_assume_all_nonzero=True), ReadsZero():
        return _traced_model(open_checkpoint(folder))


def _traced_model(checkpoint: Checkpoint) -> Trace:
    model = architecture.build(checkpoint, DRY_DTYPE, ragged=False)
    architecture.layers_of(model)  # raises for a family without a list of layers
    try:
        alone = _trace_sequence(model)
    except _FAILURES as error:
        raise ModelError(
            f"The family '{model.config.model_type}' cannot be split into layers: {one_line(error)}",
            hint=architecture.WHOLE,
        ) from error
    try:
        together = _trace_ragged(architecture.build(checkpoint, DRY_DTYPE), alone)
    except _FAILURES:
        return alone
    return together if _agree(together, alone) else alone


_FAILURES = (ModelError, RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, LookupError)
"""What a family's own code raises when it is called in a way that it was not written for."""


def _agree(together: Trace, alone: Trace) -> bool:
    """Whether a layer does nothing with the cache that our attention does not do for it.

    A family may leave its windows to its masks, of which our attention knows nothing: then the windows differ.
    """
    own = together.kv_shapes.keys() - together.same_as.keys()
    windows = {index: window for index, window in together.windows.items() if index in own}
    stateless = all(state == (0, 0) for state in alone.states.values())
    every = set(together.decoder_layers.values()) == set(range(len(alone.seams.calls)))
    return stateless and every and own == alone.kv_shapes.keys() and windows == alone.windows


class _Recorder:
    """Stands where the paged cache will stand, in either way of running, and writes down what each layer brings."""

    start = 0

    def __init__(self) -> None:
        self.kv_shapes: dict[int, KvShape] = {}
        self.same_as: dict[int, int] = {}
        self.decoder_layers: dict[int, int] = {}
        self.windows: dict[int, int] = {}
        self.states: dict[int, int] = {}
        self.decoder_layer = -1
        self._keys: dict[int, TensorWeakRef] = {}  # weak: what no layer holds any more is not alive at once

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        self._note(layer, KvShape(key.shape[0], key.shape[2], value.shape[2]))
        if options.sliding_window is not None:
            self.windows[layer] = options.sliding_window
        whole = key if key._base is None else key._base
        for earlier, other in self._keys.items():
            if whole is other():
                self.same_as[layer] = self.same_as.get(earlier, earlier)
        self._keys[layer] = TensorWeakRef(whole)
        return query.new_empty(query.shape[1], query.shape[0], value.shape[2])

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._note(layer, KvShape(key.shape[0], key.shape[2], value.shape[2]))
        return key, value

    def _note(self, layer: int, shape: KvShape) -> None:
        if layer in self.kv_shapes:
            raise ModelError("The family attends twice in one layer, which cannot be paged.")
        self.kv_shapes[layer] = shape
        self.decoder_layers[layer] = self.decoder_layer


def _trace_ragged(model: PreTrainedModel, alone: Trace) -> Trace:
    recorder = _Recorder()

    def forward(_tokens: int, ids: torch.Tensor, positions: torch.Tensor) -> None:
        recorder.__init__()
        architecture.base_model(model)(input_ids=ids, position_ids=positions, use_cache=False, paged=recorder)

    with _following(model, recorder):
        seams = watch_calls(model, forward)
    return replace(
        alone,
        seams=seams,
        ragged=True,
        kv_shapes=recorder.kv_shapes,
        decoder_layers=recorder.decoder_layers,
        same_as=recorder.same_as,
        windows=recorder.windows,
        states={},
        live_elements=_live_elements(model, forward),
        siblings=_siblings(model, forward),
    )


def _siblings(model: PreTrainedModel, forward: Forward) -> dict[int, Siblings]:
    ids = torch.empty(1, _LIVE_TOKENS, device="meta", dtype=torch.int64)
    positions = torch.empty(1, _LIVE_TOKENS, device="meta", dtype=torch.int64)
    with torch.inference_mode(False), torch.no_grad(), watching(architecture.layers_of(model)) as watch:
        forward(_LIVE_TOKENS, ids, positions)
    return watch.found()


def _trace_sequence(model: PreTrainedModel) -> Trace:
    kind = _cache_kind(model)
    recorders: dict[int, _Recorder] = {}

    def forward(tokens: int, ids: torch.Tensor, positions: torch.Tensor) -> None:
        recorder = recorders[tokens] = _Recorder()
        kept = SequenceCache(model, kind, recorder)
        arguments = positions_for(model, positions) | {"past_key_values": kept.cache, "use_cache": True}
        with _following(model, recorder, kept):
            architecture.base_model(model)(input_ids=ids, **arguments)
        recorder.windows = kept.windows()

    seams = watch_calls(model, forward)
    live_elements = _live_elements(model, forward)
    one, other = (recorders[tokens] for tokens in SAMPLE_TOKENS)
    return Trace(
        seams,
        False,
        kind,
        one.kv_shapes,
        one.decoder_layers,
        {},
        one.windows,
        _states(one.states, other.states),
        live_elements,
    )


def positions_for(model: PreTrainedModel, positions: torch.Tensor) -> dict[str, Any]:
    """The positions as arguments, for a base model that does not count them itself."""
    known = _takes_positions(type(architecture.base_model(model)))
    return {"position_ids": positions} if known else {}


@cache
def _takes_positions(kind: type[PreTrainedModel]) -> bool:
    return "position_ids" in inspect.signature(kind.forward).parameters


def _cache_kind(model: PreTrainedModel) -> type[Cache]:
    """The class of the cache that the base model makes for itself."""
    ids = torch.empty(1, 2, device="meta", dtype=torch.int64)
    output: Any = architecture.base_model(model)(input_ids=ids, use_cache=True)
    if not isinstance(output.past_key_values, Cache):
        raise ModelError("It has no cache that VRAMancer knows.")
    return type(output.past_key_values)


@contextmanager
def _following(model: PreTrainedModel, recorder: _Recorder, kept: SequenceCache | None = None) -> Iterator[None]:
    """Tell the recorder which decoder layer runs, and after each how much state the cache has come to hold."""
    before = _state_elements(kept)
    handles: list[Any] = []

    def enter(index: int) -> Callable[..., None]:
        def note(_module: Any, _inputs: Any) -> None:
            recorder.decoder_layer = index

        return note

    def leave(_module: Any, _inputs: Any, _output: Any) -> None:
        nonlocal before
        after = _state_elements(kept)
        recorder.states[recorder.decoder_layer], before = after - before, after

    for index, layer in enumerate(architecture.layers_of(model)):
        handles += [layer.register_forward_pre_hook(enter(index)), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _state_elements(kept: SequenceCache | None) -> int:
    return sum(tensor.numel() for tensor in kept.state() if tensor.is_meta) if kept else 0


def _states(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """By layer: (elements, elements per token) of the states after each of SAMPLE_TOKENS."""
    few, many = SAMPLE_TOKENS
    slopes = {layer: max(0, -(-(other[layer] - size) // (many - few))) for layer, size in one.items()}
    constant = {layer: max(min(1, size), size - slopes[layer] * few) for layer, size in one.items()}
    return {layer: (constant[layer], slopes[layer]) for layer in one}


def _live_elements(model: PreTrainedModel, forward: Forward) -> int:
    """Per token, with what the layers pass on."""
    ids = torch.empty(1, _LIVE_TOKENS, device="meta", dtype=torch.int64)
    positions = torch.empty(1, _LIVE_TOKENS, device="meta", dtype=torch.int64)
    with torch.inference_mode(), LiveElements() as live:
        forward(_LIVE_TOKENS, ids, positions)
    return -(-live.peak_elements // _LIVE_TOKENS) + model.config.get_text_config().hidden_size
