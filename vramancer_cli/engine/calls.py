"""How a model calls its layers, found by watching it on `meta`: what each layer is handed, and where that came from.

Must never touch real memory or know a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from vramancer_cli.engine import architecture
from vramancer_cli.engine.provenance import Provenance, leaves_of, tensors_in
from vramancer_cli.engine.seam import RESULT, Crossing, LayerCall, Path, Seams
from vramancer_cli.errors import ModelError

SAMPLE_TOKENS: Final = (128, 256)
"""Two lengths: what differs between them is what grows with the tokens. Whole blocks for every compression in use."""

Forward = Callable[[int, torch.Tensor, torch.Tensor], object]
"""Run the base model on ids and positions [1, tokens]."""


class _Watch:
    """One forward: per layer the tensors it is handed, in order, and the shape of what it returns."""

    def __init__(self, source: torch.Tensor) -> None:
        self.provenance = Provenance(source)
        self.handed: list[list[tuple[Path, torch.Tensor]]] = []
        self.origins: list[list[int]] = []
        self.returns: list[int] = []
        self.outputs: dict[str, torch.Tensor] = {}
        self.result: torch.Tensor | None = None

    def before(self, layer: int) -> Callable[..., None]:
        def note(_module: Any, args: Any, kwargs: Any) -> None:
            if layer != len(self.handed):
                raise ModelError("The family does not run its layers one after the other, each once.")
            leaves = [(path, tensor) for path, tensor in leaves_of((args, kwargs)) if self._origin(tensor) is not None]
            self.handed.append(leaves)
            self.origins.append([self.provenance.of(tensor) or 0 for _, tensor in leaves])
            self.provenance.enter(layer, tensors_in((args, kwargs)))

        return note

    def after(self, layer: int) -> Callable[..., None]:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            self.provenance.leave()
            self.returns.append(0 if isinstance(output, torch.Tensor) else len(output))
            self.result = next(tensors_in(output))

        return note

    def outside(self, name: str) -> Callable[..., None]:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self.outputs.setdefault(name, output)

        return note

    def _origin(self, tensor: torch.Tensor) -> int | None:
        return self.provenance.of(tensor)


def watch_calls(model: PreTrainedModel, forward: Forward) -> Seams:
    """The seams of `model` (whole, on meta). Raises ModelError where it cannot be cut between its layers."""
    one, other = (_watched(model, forward, tokens) for tokens in SAMPLE_TOKENS)
    if not one.handed or len(one.returns) != len(architecture.layers_of(model)):
        raise ModelError("The family does not run its layers one after the other, each once.")
    names: dict[int, str] = {}
    crossings: dict[str, Crossing] = {}
    calls: list[LayerCall] = []
    for layer, (leaves, twins) in enumerate(zip(one.handed, other.handed, strict=True)):
        for (path, tensor), (_, twin), origin in zip(leaves, twins, one.origins[layer], strict=True):
            if id(tensor) not in names:
                name = names[id(tensor)] = f"{layer}.{'.'.join(map(str, path[1:]))}"
                crossings[name] = _crossing(name, origin, tensor, twin)
        calls.append(LayerCall(tuple((path, names[id(tensor)]) for path, tensor in leaves), one.returns[layer]))
    assert one.result is not None and other.result is not None
    result = _crossing(RESULT, len(calls) - 1, one.result, other.result)
    stand_ins = {name: _shape(name, tensor, other.outputs[name]) for name, tensor in one.outputs.items()}
    seams = Seams(tuple(calls), crossings, result, stand_ins)
    _refuse_lost(seams)
    return seams


def _watched(model: PreTrainedModel, forward: Forward, tokens: int) -> _Watch:
    ids = torch.empty(1, tokens, device="meta", dtype=torch.int64)
    positions = torch.empty(1, tokens, device="meta", dtype=torch.int64)
    watch = _Watch(ids)
    with torch.inference_mode(False), torch.no_grad(), _hooks(model, watch), watch.provenance:
        forward(tokens, ids, positions)
    return watch


@contextmanager
def _hooks(model: PreTrainedModel, watch: _Watch) -> Iterator[None]:
    layers = architecture.layers_of(model)
    handles: list[Any] = []
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(watch.before(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(watch.after(index)))
    for name, module in architecture.outside(model):
        handles.append(module.register_forward_hook(watch.outside(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _crossing(name: str, origin: int, tensor: torch.Tensor, twin: torch.Tensor) -> Crossing:
    choices = origin >= 0 and not tensor.is_floating_point()
    shape, axis = _shape(name, tensor, twin)
    return Crossing(name, origin, shape, axis, tensor.dtype, choices)


def _shape(name: str, tensor: torch.Tensor, twin: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """The shape with a 1 for the tokens, and their axis: the first of those that grow with them."""
    pairs = list(zip(tensor.shape, twin.shape, strict=True))
    axes = [axis for axis, pair in enumerate(pairs) if pair == SAMPLE_TOKENS]
    if not axes or (len(axes) > 1 and tensor.is_floating_point()):
        raise ModelError(f"A layer is handed '{name}' of shape {list(tensor.shape)}, which has no row per token.")
    return tuple(1 if axis in axes else size for axis, (size, _) in enumerate(pairs)), axes[0]


def _refuse_lost(seams: Seams) -> None:
    """What a layer makes for a later one must pass through the hands of those between, or a cut would lose it."""
    for cut, call in enumerate(seams.calls):
        here = {name for _, name in call.leaves}
        for crossing in seams.at(cut):
            if crossing.origin >= 0 and crossing.name not in here:
                raise ModelError(f"'{crossing.name}' by-passes the layers before the one that needs it.")
