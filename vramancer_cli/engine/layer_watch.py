"""One pass of a few made-up tokens through loaded layers, and all that is seen of each: what `layer_forms` reads.

Must never change a layer, and never know a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vramancer_cli.engine.attention import Options, attend_sequence

PROBE_TOKENS: Final = 5
PROBE_POSITIONS: Final = (3, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Of a module without children: what it was handed first, and gave."""

    module: torch.nn.Module
    handed: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True, slots=True)
class Attended:
    """A call of our attention, [heads, T, size] each; `after` so many of the layer's calls."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: Options
    after: int


@dataclass(slots=True)
class Seen:
    """A layer's call: its arguments, the calls within in their order, and the operators between them by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    calls: list[Call] = field(default_factory=list[Call])
    attended: list[Attended] = field(default_factory=list[Attended])
    operators: set[str] = field(default_factory=set[str])
    output: Any = None

    @property
    def hidden(self) -> Any:
        """What it was handed first, [1, T, hidden]."""
        return self.args[0] if self.args else self.kwargs.get("hidden_states")


class Probe:
    """An AttentionContext for one sequence that has no tokens yet, and keeps none."""

    def __init__(self, watch: LayerWatch | None = None) -> None:
        self._watch = watch

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        if self._watch is not None:
            self._watch.attended(layer, query, key, value, options)
        with _unseen(self._watch):
            return attend_sequence(query, key, value, 0, options).transpose(0, 1).contiguous()


class LayerWatch(TorchDispatchMode):
    """Hooks on layers while one forward passes through them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Seen] = {}
        self.within = 0
        self._now: Seen | None = None

    def attended(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> None:
        if self._now is not None:
            after = len(self._now.calls)
            self._now.attended.append(Attended(layer, query.clone(), key.clone(), value.clone(), options, after))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._now is not None and not self.within:
            self._now.operators.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def on(self, layers: Mapping[int, torch.nn.Module]) -> Iterator[None]:
        with ExitStack() as hooks:
            for index, layer in layers.items():
                hooks.callback(layer.register_forward_pre_hook(self._entering(index), with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(self._leaving, prepend=True).remove)
                for part in _leaves(layer):
                    hooks.callback(part.register_forward_pre_hook(self._into_part).remove)
                    hooks.callback(part.register_forward_hook(self._out_of_part).remove)
            hooks.enter_context(self)
            yield

    def _entering(self, index: int) -> Callable[..., None]:
        def note(_module: Any, args: Any, kwargs: Any) -> None:
            self._now = self.seen[index] = Seen(args, dict(kwargs))

        return note

    def _leaving(self, _module: Any, _inputs: Any, output: Any) -> None:
        assert self._now is not None
        self._now.output, self._now = output, None

    def _into_part(self, _module: Any, _inputs: Any) -> None:
        self.within += 1

    def _out_of_part(self, module: Any, inputs: Any, output: Any) -> None:
        self.within -= 1
        if self._now is not None:
            self._now.calls.append(Call(module, inputs[0], output))


@contextmanager
def _unseen(watch: LayerWatch | None) -> Iterator[None]:
    if watch is None:
        yield
        return
    watch.within += 1
    try:
        yield
    finally:
        watch.within -= 1


def _leaves(layer: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Modules whose inside is not looked into: those without children, and linear layers that share a product."""
    for module in layer.children():
        if hasattr(module, "shared") or not list(module.children()):
            yield module
        else:
            yield from _leaves(module)
