"""Ways through a model's ends that lead through one or two modules and nothing else: found by watching, bit for bit.

A family's forward makes positions, masks and stand-ins on the way, again for every token. Where what comes out is the
very tensor that a module gave, and what went in is the very one that it was handed, the module alone gives the same.
Must never know a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Through = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Of a module without children."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def watching(model: torch.nn.Module) -> Iterator[list[Call]]:
    """All calls of modules with weights while this lasts, in their order."""
    calls: list[Call] = []

    def note(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(Call(module, args, kwargs, output))

    leaves = (module for module in model.modules() if not list(module.children()))
    handles = [leaf.register_forward_hook(note, with_kwargs=True) for leaf in leaves]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def between(calls: list[Call], entering: torch.Tensor, leaving: torch.Tensor) -> Through | None:
    """What makes `leaving` of `entering`: one of the calls, or two; None where more happens, or it is not sure."""
    last = _giving(calls, lambda output: output is leaving)
    if last is None:
        return None
    first = _giving(calls, lambda output: isinstance(output, torch.Tensor) and _is_handed(last, output))
    through = last.module if _is_handed(last, entering) else _both(first, last, entering)
    # By trying, too: what was changed in place has not changed its name.
    return through if through is not None and torch.equal(through(entering), leaving) else None


def _giving(calls: list[Call], is_it: Callable[[Any], bool]) -> Call | None:
    return next((call for call in calls[::-1] if is_it(call.output)), None)


def _both(first: Call | None, last: Call, entering: torch.Tensor) -> Through | None:
    if first is None or not _is_handed(first, entering):
        return None
    one, other = first.module, last.module
    return lambda given: other(one(given))


def _is_handed(call: Call, tensor: torch.Tensor) -> bool:
    """The tensor or a view of all of it, and nothing beside it."""
    if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], torch.Tensor):
        return False
    given = call.args[0]
    alike = (given.data_ptr(), given.shape, given.stride(), given.dtype)
    return given is tensor or alike == (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
