"""What crosses a cut of the model, as a value: hidden states and, in some families, more tensors beside them.

Every tensor is [tokens, width]. Must never know where it goes or how it travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from transport.errors import RemoteProtocolError
from vramancer_cli.engine.seam import HIDDEN, Crossing
from vramancer_cli.engine.transfer import moved


@dataclass(frozen=True, slots=True)
class Boundary:
    """`hidden` [tokens, width], and by name whatever else later layers need of what was made before the cut."""

    hidden: torch.Tensor
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def to(self, device: torch.device) -> Boundary:
        return Boundary(
            moved(self.hidden, device), {name: moved(tensor, device) for name, tensor in self.beside.items()}
        )

    def part(self, first: int, count: int) -> Boundary:
        """The rows of tokens [first, first + count), as views."""
        beside = {name: tensor.narrow(0, first, count) for name, tensor in self.beside.items()}
        return Boundary(self.hidden.narrow(0, first, count), beside)

    def rows(self, indices: torch.Tensor) -> Boundary:
        """The rows `indices` [R] of the hidden states alone, which is all that follows the last layer."""
        return Boundary(self.hidden.index_select(0, indices))

    def taken(self, crossings: Sequence[Crossing]) -> dict[str, torch.Tensor]:
        """By name, each tensor as the layers take it."""
        first, *others = crossings
        return {first.name: first.from_rows(self.hidden)} | {
            crossing.name: crossing.from_rows(self.beside[crossing.name]) for crossing in others
        }


def gathered(crossings: Sequence[Crossing], tensors: Mapping[str, torch.Tensor]) -> Boundary:
    """The other way than `taken`."""
    first, *others = crossings
    beside = {crossing.name: crossing.to_rows(tensors[crossing.name]) for crossing in others}
    return Boundary(first.to_rows(tensors[first.name]), beside)


def nothing(crossings: Sequence[Crossing], dtype: torch.dtype, device: torch.device) -> Boundary:
    """What crosses for no tokens at all."""

    def empty(crossing: Crossing) -> torch.Tensor:
        return torch.empty(0, crossing.width or 0, dtype=crossing.dtype_in(dtype), device=device)

    return Boundary(empty(crossings[0]), {crossing.name: empty(crossing) for crossing in crossings[1:]})


def joined(parts: Sequence[Boundary]) -> Boundary:
    """One after the other. Choices of fewer positions than others are filled up with -1."""
    if len(parts) == 1:
        return parts[0]
    beside = {name: _stacked([part.beside[name] for part in parts]) for name in parts[0].beside}
    return Boundary(torch.cat([part.hidden for part in parts]), beside)


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts])


def check(
    boundary: Boundary, crossings: Sequence[Crossing], tokens: int, dtype: torch.dtype, limits: tuple[int, int]
) -> None:
    """Raises RemoteProtocolError for anything but what crosses here for `tokens` tokens.

    `limits`: token ids, and positions that layers chose, are below these.
    """
    first, *others = crossings
    _check_tensor(boundary.hidden, HIDDEN, first, tokens, dtype)
    if boundary.beside.keys() != {crossing.name for crossing in others}:
        raise RemoteProtocolError(
            f"Beside the hidden states came {_listed(boundary.beside)}, {_listed(c.name for c in others)} were due."
        )
    for crossing in others:
        tensor = boundary.beside[crossing.name]
        _check_tensor(tensor, crossing.name, crossing, tokens, dtype)
        if not tensor.is_floating_point():
            _check_range(tensor, crossing, limits)


def _check_tensor(tensor: torch.Tensor, name: str, crossing: Crossing, tokens: int, dtype: torch.dtype) -> None:
    kind = crossing.dtype_in(dtype)
    expected = (tokens, tensor.shape[-1] if crossing.width is None else crossing.width)
    if tuple(tensor.shape) != expected or tensor.dtype != kind:
        raise RemoteProtocolError(
            f"'{name}' came as {tuple(tensor.shape)} of {tensor.dtype}, {expected} of {kind} was due."
        )


def _check_range(tensor: torch.Tensor, crossing: Crossing, limits: tuple[int, int]) -> None:
    lowest, limit = (-1, limits[1]) if crossing.choices else (0, limits[0])
    if tensor.shape[1] > limit or bool(((tensor < lowest) | (tensor >= limit)).any()):
        raise RemoteProtocolError(f"'{crossing.name}' holds numbers outside [{lowest}, {limit}).")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
