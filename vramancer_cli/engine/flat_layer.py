"""A decoder layer as a flat list of operators, for layers that are known to compute just this (see `layer_forms`).

    rows + post_norm(output(attend(rotate(qkv(norm(rows))))))   and, of that,
    rows + post_norm(down(gated(gate_up(norm(rows)))))

Many pre-norm decoders are that, with or without norms of heads and after each half (Touvron et al., "LLaMA", 2023).
Must never know a family by name, or decide whether a layer is one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from vramancer_cli.engine.attention import AttentionContext, Options
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.engine.siblings import SiblingLinear
from vramancer_cli.errors import VramancerError

FLAT_DTYPES: Final = (torch.float32, torch.bfloat16)
"""What the native operators take."""
Rows = Callable[[torch.Tensor], torch.Tensor]
"""[T, width] in, [T, another width] out."""
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class Norm(NamedTuple):
    """(offset + weight) * row / sqrt(mean(row^2) + eps)."""

    weight: torch.Tensor
    eps: float
    offset: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.vramancer.rms_norm(rows, *self)

    def after_adding(self, rows: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """`more` is added to `rows` in place; then as above."""
        return torch.ops.vramancer.add_rms_norm(rows, more, *self)


class Product:
    """Of siblings, whose results lie side by side and which all have a bias or none, or of one linear layer."""

    def __init__(self, parts: Iterable[SiblingLinear | QuantisedLinear]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        self._multiply: Rows = first.shared if isinstance(first, SiblingLinear) else first
        biases = [part.bias for part in self.parts] if isinstance(first, SiblingLinear) else []
        self._bias = torch.cat([b for b in biases if b is not None]) if any(b is not None for b in biases) else None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        output = self._multiply(rows)
        return output if self._bias is None else output.add_(self._bias)


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """`cache_layer`: as the family numbers what is kept. `angles`: of the layer's arguments, cosines and sines [1, T,
    rotated]. Keys and values have one size."""

    norm: Norm
    qkv: Product
    heads: int
    kv_heads: int
    size: int
    query_norm: Norm | None
    key_norm: Norm | None
    angles: Callable[[Arguments], tuple[torch.Tensor, torch.Tensor]]
    cache_layer: int
    options: Options
    output: Product
    post_norm: Norm | None

    def __call__(self, rows: torch.Tensor, call: Arguments) -> torch.Tensor:
        """[T, hidden] in and out, without the residual."""
        both = self.qkv(self.norm(rows))
        self._rotate(both, call)
        heads = both.view(len(both), -1, self.size).transpose(0, 1)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads))
        paged: AttentionContext = call[1]["paged"]
        attended = paged.attend(self.cache_layer, query, key, value, self.options)
        output = self.output(attended.reshape(len(rows), -1))
        return output if self.post_norm is None else self.post_norm(output)

    def _rotate(self, both: torch.Tensor, call: Arguments) -> None:
        cos, sin = self.angles(call)
        norm = self.query_norm or self.norm  # only for numbers: those of both heads' norms are the same
        query = self.query_norm.weight if self.query_norm else both.new_empty(0)
        key = self.key_norm.weight if self.key_norm else both.new_empty(0)
        torch.ops.vramancer.rotate(
            both, cos[0], sin[0], query, key, self.heads, self.kv_heads, self.size, norm.eps, norm.offset
        )


@dataclass(frozen=True, slots=True)
class GatedForm:
    """`activation`: as the operator numbers them."""

    norm: Norm
    gate_up: Product
    activation: int
    down: Product
    post_norm: Norm | None

    def __call__(self, rows: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """The layer's result [T, hidden]: `rows` (which this changes) and `more` are its residual."""
        both = self.gate_up(self.norm.after_adding(rows, more))
        output = self.down(torch.ops.vramancer.gated(both, self.activation))
        output = output if self.post_norm is None else self.post_norm(output)
        return output.add_(rows)


class FlatLayer(torch.nn.Module):
    """In the place of a decoder layer, whose parts it has under their own names; [1, T, hidden] in and out."""

    def __init__(self, layer: torch.nn.Module, attention: AttentionForm, gated: GatedForm) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        for name, value in vars(layer).items():  # some families ask a layer for its type
            if isinstance(value, (str, int)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._forms: tuple[AttentionForm, GatedForm] | None = (attention, gated)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._forms is None:
            raise VramancerError("The layer has been unloaded.")
        attention, gated = self._forms
        rows = (args[0] if args else kwargs["hidden_states"])[0]
        return gated(attention(rows, (args, kwargs)), rows)[None]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Sent to `meta`, its weights are freed whoever still refers to it."""
        if fn(torch.empty(0)).is_meta:
            self._forms = None
        return super()._apply(fn, recurse)
