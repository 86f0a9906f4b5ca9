"""Where values come from: a dispatch mode that follows, on `meta`, what depends on the tokens and since when.

What a layer is handed either follows from positions and lengths alone, and every stage computes it itself, or it
depends on the tokens, and must cross a cut. Must never know a family by name, or what is done with its findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from vramancer_cli.errors import ModelError

PROLOGUE: Final = -1
"""The origin of what is made before the first layer."""


class Provenance(TorchDispatchMode):
    """Gives every tensor that depends on a source its origin: the layer that it was made in.

    What is made between two layers has the origin of what it was made from. Raises ModelError, at the operation,
    where that is not one thing: such work would need values from both sides of a cut.
    """

    def __init__(self, source: torch.Tensor) -> None:
        super().__init__()
        self._origins = WeakTensorKeyDictionary()
        self._origins[source] = PROLOGUE
        self._layer: int | None = None
        self._handed: list[torch.Tensor] = []

    def of(self, tensor: torch.Tensor) -> int | None:
        """The tensor's origin; None where it does not depend on the tokens."""
        return self._origins.get(tensor)

    def enter(self, layer: int, handed: Iterable[torch.Tensor]) -> None:
        """Layer `layer` starts; these are the tensors that it was called with."""
        self._layer, self._handed = layer, list(handed)

    def leave(self) -> None:
        """The layer is done."""
        self._layer, self._handed = None, []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [tensor for tensor in tensors_in((args, kwargs)) if self.of(tensor) is not None]
        if sources:
            origin = self._origin(sources)
            for tensor in tensors_in(result):
                self._origins[tensor] = origin
        return result

    def _origin(self, sources: list[torch.Tensor]) -> int:
        origins = {self._origins[tensor] for tensor in sources}
        if self._layer is None:
            if len(origins) > 1:
                raise ModelError("Between its layers, the family mixes what was made at different depths.")
            return origins.pop()
        for tensor in sources:
            if self._origins[tensor] != self._layer and not any(tensor is handed for handed in self._handed):
                raise ModelError(f"Layer {self._layer} uses values that it was not handed.")
        return self._layer


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested sequences and mappings."""
    for _, tensor in leaves_of(value):
        yield tensor


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """Every tensor in nested sequences and mappings, with the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves_of(part, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from leaves_of(part, (*path, index))
