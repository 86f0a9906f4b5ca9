"""Where a model may be cut: at the call of each layer. What crosses a cut, and a model that runs from cut to cut.

A stage runs the base model's own forward: what comes before the layers works on a placeholder, the first owned layer
is handed what came over the wire instead, and after the last owned one the forward is left. So whatever a family does
before, between and after its layers is done once, by whoever is before the cut.
Must never know a family by name, or read weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from transport.types import LayerRange
from vramancer_cli.engine.provenance import PROLOGUE
from vramancer_cli.errors import ModelError

Path = tuple[Any, ...]
"""Keys that lead to a tensor in a call: 0 or 1 (positional or named arguments), then index or name, and so on."""

HIDDEN: Final = "hidden_states"
"""The name on the wire of the tensor that every cut has: what the layers pass on."""
SCALES: Final = "hidden_states.scales"
"""The name on the wire of what belongs to hidden states that were rounded."""
RESULT: Final = "result"
"""The name, among what crosses, of what the last layer gives."""


DRY_DTYPE: Final = torch.bfloat16
"""What dry runs compute in: every kernel has a meta version for it."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that depends on the tokens and is made before a layer that needs it.

    `shape` as the layer gets it, with a 1 in place of the tokens at `token_axis`; `origin`: the layer that makes it.
    `choices`: positions that an earlier layer chose for each token, fewer (the last axis) where the context is short.
    """

    name: str
    origin: int
    shape: tuple[int, ...]
    token_axis: int
    dtype: torch.dtype
    choices: bool = False

    @property
    def width(self) -> int | None:
        """Elements per token; None where it varies."""
        return None if self.choices else torch.Size(self.shape).numel()

    def dtype_in(self, computing: torch.dtype) -> torch.dtype:
        """The dtype where the plan computes in `computing`: what followed the dry run's dtype follows it."""
        return computing if self.dtype == DRY_DTYPE else self.dtype

    def to_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[tokens, width], the form that crosses the wire."""
        return tensor.movedim(self.token_axis, 0).flatten(1)

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """What the layer gets, from [tokens, width]. Of choices, those that are made up (-1) are left out."""
        rest = [size for axis, size in enumerate(self.shape) if axis != self.token_axis]
        if self.choices:
            rows = rows[:, (rows >= 0).all(0)]
            rest[-1] = rows.shape[1]
        return rows.reshape(rows.shape[0], *rest).movedim(0, self.token_axis)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How a layer is called: the names of the crossing tensors by path, and how many values it returns (0: one)."""

    leaves: tuple[tuple[Path, str], ...]
    returns: int


@dataclass(frozen=True, slots=True)
class Seams:
    """All layers' calls, and everything that may cross between them.

    `stand_ins`: by module name, the shape of what a module outside the layers gives (a 1 in place of the tokens) and
    the axis of the tokens.
    """

    calls: tuple[LayerCall, ...]
    crossings: Mapping[str, Crossing]
    result: Crossing
    stand_ins: Mapping[str, tuple[tuple[int, ...], int]]

    def at(self, cut: int) -> tuple[Crossing, ...]:
        """What crosses before layer `cut` (after all layers: their result), hidden states first."""
        if cut == len(self.calls):
            return (self.result,)
        needed = dict.fromkeys(name for call in self.calls[cut:] for _, name in call.leaves)
        return tuple(self.crossings[name] for name in needed if self.crossings[name].origin < cut)

    def brought(self, layer: int, cut: int) -> tuple[tuple[Path, str], ...]:
        """The arguments of `layer` that come from before `cut`."""
        return tuple((path, name) for path, name in self.calls[layer].leaves if self.crossings[name].origin < cut)


class _Reached(BaseException):
    """The forward has come as far as it should. Not an error, so nothing on the way may catch it."""


class SplitModel:
    """Layers `[start, end)` of a model, or with `ends` all that is around the layers. Built on a model on meta."""

    def __init__(self, model: PreTrainedModel, container: torch.nn.ModuleList, seams: Seams, layers: LayerRange):
        self.seams = seams
        self._model = model
        self._layers = layers
        self._calls = seams.calls
        self._last_prologue = max(index for index, _ in enumerate(self._calls) if self._fresh(index))
        self._incoming: Mapping[str, torch.Tensor] = {}
        self._outgoing: dict[str, torch.Tensor] = {}
        self._passing: Callable[[int, tuple[Any, ...], dict[str, Any]], Any] = self._pass_in_stage
        self._container = container
        self._hooks: dict[int, list[RemovableHandle]] = {}
        for index in range(len(container)):
            if layers.start <= index < layers.end:
                self._attach(index)
            else:
                container[index] = _Passed(self, index, container[index])

    def _attach(self, index: int) -> None:
        """Hand the owned layer what came over the wire, and leave the forward after the model's last one."""
        layer, hooks = self._container[index], self._hooks.setdefault(index, [])
        if brought := self.seams.brought(index, self._layers.start):
            hooks.append(layer.register_forward_pre_hook(_Handing(self, brought), with_kwargs=True))
        if index + 1 == len(self._calls):
            hooks.append(layer.register_forward_hook(self._leave_after_last))

    def take_out(self, index: int) -> torch.nn.Module:
        """An owned layer, as if it had never been here. The model cannot run after this."""
        layer = self._container[index]
        for hook in self._hooks.pop(index):
            hook.remove()
        self._container[index] = PipelineIdentityLayer()
        return layer

    def put_in(self, index: int, layer: torch.nn.Module) -> None:
        """In the place of an owned layer, the same one of another copy of the model."""
        self._container[index] = layer
        self._hooks.pop(index)
        self._attach(index)

    def run(self, incoming: Mapping[str, torch.Tensor], **arguments: Any) -> dict[str, torch.Tensor]:
        """From what crosses before the first owned layer to what crosses after the last."""
        self._passing = self._pass_in_stage
        return self._run_until_reached(incoming, arguments)

    def prologue(self, **arguments: Any) -> dict[str, torch.Tensor]:
        """From token ids to what crosses before layer 0. Only for the ends."""
        self._passing = self._pass_in_prologue
        return self._run_until_reached({}, arguments)

    def epilogue(self, result: torch.Tensor, **arguments: Any) -> Any:
        """From what the last layer gave to the model's own output. Only for the ends."""
        return self._after_layers(self._model, result, arguments)

    def final_hidden(self, result: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """As `epilogue`, to what the base model gives, [1, tokens, hidden]."""
        return self._after_layers(self._model.base_model, result, arguments).last_hidden_state

    def _after_layers(self, model: Any, result: torch.Tensor, arguments: dict[str, Any]) -> Any:
        self._passing = self._pass_in_epilogue
        self._incoming = {RESULT: result}
        return model(**arguments)

    def _run_until_reached(
        self, incoming: Mapping[str, torch.Tensor], arguments: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        self._incoming, self._outgoing = incoming, {}
        try:
            self._model.base_model(**arguments)  # pyright: ignore[reportCallIssue]
        except _Reached:
            return self._outgoing
        finally:
            self._incoming = {}
        raise ModelError("The model's forward did not come to its layers.")

    # --- what stands in the place of a layer --------------------------------------------------------------------

    def passed(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._passing(layer, args, kwargs)

    def _pass_in_stage(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer < self._layers.start:
            return self._returned(layer, _first((args, kwargs)))
        here = {name: path for path, name in self._calls[layer].leaves}
        for crossing in self.seams.at(layer):
            brought = self._incoming.get(crossing.name)
            self._outgoing[crossing.name] = _at((args, kwargs), here[crossing.name]) if brought is None else brought
        raise _Reached

    def _pass_in_prologue(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for path, name in self._fresh(layer):
            self._outgoing[name] = _at((args, kwargs), path)
        if layer == self._last_prologue:
            raise _Reached
        return self._returned(layer, _first((args, kwargs)))

    def _pass_in_epilogue(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        last = layer + 1 == len(self._calls)
        return self._returned(layer, self._incoming[RESULT] if last else _first((args, kwargs)))

    def _leave_after_last(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._outgoing[RESULT] = _first(output)
        raise _Reached

    def _fresh(self, layer: int) -> list[tuple[Path, str]]:
        """The arguments of `layer` that are made before all layers."""
        return [leaf for leaf in self._calls[layer].leaves if self.seams.crossings[leaf[1]].origin == PROLOGUE]

    def _returned(self, layer: int, hidden: torch.Tensor) -> Any:
        """`hidden` in the form in which the layer returns it."""
        count = self._calls[layer].returns
        return (hidden, *(None for _ in range(count - 1))) if count else hidden

    def handed(self, name: str) -> torch.Tensor:
        return self._incoming[name]


class _Passed(torch.nn.Module):
    """In the place of a layer that is not owned. Has its plain attributes: some families ask a layer for its type."""

    def __init__(self, split: SplitModel, index: int, layer: torch.nn.Module) -> None:
        super().__init__()
        self._split, self._index = split, index
        for name, value in vars(layer).items():
            if isinstance(value, (str, int)) and not name.startswith("_"):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._split.passed(self._index, args, kwargs)


class _Handing:
    """Before an owned layer: put what came over the wire in the place of what the placeholder led to."""

    def __init__(self, split: SplitModel, brought: Sequence[tuple[Path, str]]) -> None:
        self._split, self._brought = split, brought

    def __call__(self, _module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        call = (args, kwargs)
        for path, name in self._brought:
            call = _replaced(call, path, self._split.handed(name))
        return call


class StandIn(torch.nn.Module):
    """In the place of a module whose weights others hold: gives zeros of the right shape, for work that is thrown away.

    `tokens_at`: the axis of its first argument that counts the tokens is the last one of token ids [1, T], and the
    second of everything else [1, T, ...].
    """

    def __init__(self, shape: tuple[int, ...], token_axis: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._shape, self._token_axis, self._dtype = shape, token_axis, dtype

    def forward(self, value: torch.Tensor, *_others: Any, **_named: Any) -> torch.Tensor:
        shape = list(self._shape)
        shape[self._token_axis] = value.shape[1]
        return torch.zeros(shape, dtype=self._dtype, device=value.device)


def _first(value: Any) -> Any:
    """The first tensor of nested arguments: the hidden states, in every family."""
    while not isinstance(value, torch.Tensor):
        parts = list(value.values()) if isinstance(value, Mapping) else value
        value = next(part for part in parts if isinstance(part, torch.Tensor) or part)
    return value


def _at(whole: Any, path: Path) -> Any:
    for key in path:
        whole = whole[key]
    return whole


def _replaced(whole: Any, path: Path, value: torch.Tensor) -> Any:
    """`whole` with `value` at `path`. Mappings are changed in place: the base model hands on the same one."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(whole, MutableMapping):
        whole[key] = _replaced(whole.get(key), rest, value)
        return whole
    parts = list(whole or ())
    parts += [None] * (key + 1 - len(parts))
    parts[key] = _replaced(parts[key], rest, value)
    return tuple(parts)
