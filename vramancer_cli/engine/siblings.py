"""Linear layers that are called with one and the same tensor: found on `meta`, multiplied in one product.

Queries, keys and values, or a gate and what it gates: one product reads its rows once, rounds them once, and wakes
other threads once. Must never know a family, or what the parts are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vramancer_cli.engine.quant import QuantisedWeight, joined_weights
from vramancer_cli.engine.quant_choice import kernel_for
from vramancer_cli.engine.quant_kernels import Kernel
from vramancer_cli.errors import VramancerError

Siblings = tuple[tuple[str, ...], ...]
"""Names of the linear layers within one decoder layer that belong together, in the order of their calls."""


class SiblingWatch:
    """One forward: which linear layers got the very same tensor, unchanged between the calls."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int, int], list[str]] = {}
        self._kept: list[torch.Tensor] = []  # so that no two tensors have one id

    def note(self, layer: int, name: str, handed: torch.Tensor) -> None:
        self._kept.append(handed)
        self._calls.setdefault((layer, id(handed), handed._version), []).append(name)

    def found(self) -> dict[int, Siblings]:
        """By decoder layer. A linear layer that was called twice has none."""
        names = [(layer, name) for (layer, _, _), group in self._calls.items() for name in group]
        groups: dict[int, list[tuple[str, ...]]] = {}
        for (layer, _, _), group in self._calls.items():
            if len(group) > 1 and all(names.count((layer, name)) == 1 for name in group):
                groups.setdefault(layer, []).append(tuple(group))
        return {layer: tuple(found) for layer, found in groups.items()}


@contextmanager
def watching(layers: Iterable[torch.nn.Module]) -> Iterator[SiblingWatch]:
    """Of forwards that begin within; the tensors are kept as long as the watch."""
    watch = SiblingWatch()

    def noting(layer: int, name: str) -> Callable[..., None]:
        return lambda _module, inputs: watch.note(layer, name, inputs[0])

    named = ((n, name, module) for n, layer in enumerate(layers) for name, module in layer.named_modules())
    handles = [
        module.register_forward_pre_hook(noting(n, name))
        for n, name, module in named
        if type(module) is torch.nn.Linear
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


class SharedProduct(torch.nn.Module):
    """Several weights one below the other: rows [M, K] in, [M, sum of outputs] out."""

    def __init__(self, joined: QuantisedWeight, widths: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.in_features = joined.shape[1]
        self._kernel: Kernel | None = kernel_for(joined, dtype)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self._left = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self._kernel is None:
            raise VramancerError("The layer has been unloaded.")
        return self._kernel(rows)

    def part(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        """What part `index` gives for `hidden`. Computed for all parts when the first of them asks."""
        if self._last is None or self._last[0] is not hidden:
            self._last, self._left = (hidden, self.forward(hidden.reshape(-1, self.in_features))), len(self.widths)
        whole = self._last[1]
        self._left -= 1
        if not self._left:
            self._last = None
        return whole.narrow(1, sum(self.widths[:index]), self.widths[index]).contiguous()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        if fn(torch.empty(0)).is_meta:
            self._kernel = self._last = None
        return super()._apply(fn, recurse)


class SiblingLinear(torch.nn.Module):
    """Stands in the place of a Linear whose weight is a part of a SharedProduct: [..., K] in, [..., N] out."""

    def __init__(self, shared: SharedProduct, index: int, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.shared, self.index, self.bias = shared, index, bias
        self.in_features, self.out_features = shared.in_features, shared.widths[index]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.shared.part(hidden, self.index)
        if self.bias is not None:
            output = output.add_(self.bias)
        return output.view(*hidden.shape[:-1], self.out_features)


def shared_linears(
    weights: dict[str, QuantisedWeight], biases: Mapping[str, torch.nn.Parameter | None], dtype: torch.dtype
) -> dict[str, torch.nn.Module]:
    """A SiblingLinear for each weight. Empties `weights`: the parts are freed before a kernel packs the whole."""
    widths = {name: weight.shape[0] for name, weight in weights.items()}
    joined = joined_weights(list(weights.values()))
    weights.clear()
    shared = SharedProduct(joined, list(widths.values()), dtype)
    return {name: SiblingLinear(shared, index, biases[name]) for index, name in enumerate(widths)}
