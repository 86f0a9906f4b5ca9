"""Modes of torch for code that runs on `meta`: what is alive at once, and what values that do not exist are taken for.

Must never touch real memory or know what a model is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class ReadsZero(TorchFunctionMode):
    """Lets code run on meta that reads single values: each is 0."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.item and args[0].is_meta:
            return 0
        return func(*args, **(kwargs or {}))


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
