"""Where each tensor of a checkpoint belongs: a layer, or one of the ends.

A value that the engine fills from the model's own declaration; no model names here. Never torch, sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from transport.types import LayerRange

EndPlace = Literal["embed", "norm", "head", "other"]
TensorPlace = int | EndPlace
"""A decoder layer's index, an end, or "other": what no part of a text pipeline reads."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """`places`: checkpoint tensor name -> place. A tied output head has no tensor of its own."""

    places: Mapping[str, TensorPlace]

    def owned(self, layers: LayerRange, ends: bool) -> frozenset[str]:
        """The tensors that a node with `layers` (and, if `ends`, embedding, norm and head) reads; "other" never."""
        return frozenset(name for name, place in self.places.items() if _owns(place, layers, ends))


def _owns(place: TensorPlace, layers: LayerRange, ends: bool) -> bool:
    if isinstance(place, int):
        return layers.start <= place < layers.end
    return ends and place != "other"
