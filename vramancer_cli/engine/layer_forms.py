"""Which loaded layers are one of the forms that `flat_layer` computes: supposed from their calls, then proved.

The proof: a few made-up tokens through the family's own layer, and through the flat one in its place, must give the
same but for rounding, and between its parts the family's layer may only do what the form does. What is not
proved stays as it is. Must never know a family by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from vramancer_cli.engine.attention import Options
from vramancer_cli.engine.flat_layer import Arguments, AttentionForm, FlatLayer, GatedForm, Norm, Product
from vramancer_cli.engine.layer_watch import Attended, Call, Probe, Seen
from vramancer_cli.engine.provenance import leaves_of
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.engine.siblings import SiblingLinear

Activation = Callable[[torch.Tensor], torch.Tensor]

LARGEST_ERROR: Final = 0.05
"""Of a layer's result against the family's, relative, in the norm: where rows are rounded to int8, and attention is
sharp, rounding alone makes 2 %. A part left out or another one makes more than 10."""
_NORM_ERROR: Final = 0.01
"""Of a norm's and of a gate's: a rounding or two of bfloat16."""
_HARMLESS: Final = frozenset(
    (
        "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "unsqueeze", "squeeze", "expand", "slice",
        "select", "split", "split_with_sizes", "chunk", "alias", "detach", "clone", "contiguous", "copy_", "_to_copy",
        "to", "mul", "add", "neg", "cat", "empty", "empty_like", "silu", "gelu",
    )
)  # fmt: skip
"""Operators that the form is made of. Any other may do what a few tokens do not show, as a bound would."""
_NORMAL, _TINY = 1.0, 1e-3
"""Sizes of rows to try a norm with: with the smaller its epsilon shows."""


class _UnlikeError(Exception):
    """The layer is of no known form."""


def flat_form(layer: torch.nn.Module, seen: Seen) -> FlatLayer | None:
    """What computes the same as `layer`, of which `seen` was seen; None where that is not sure. In inference mode."""
    try:
        flat = _supposed(layer, seen)
    except _UnlikeError:
        return None
    output = flat(*seen.args, **(dict(seen.kwargs) | {"paged": Probe()}))
    return flat if _close(output, seen.output, LARGEST_ERROR) else None


def _close(found: torch.Tensor, expected: torch.Tensor, limit: float) -> bool:
    error = (found.float() - expected.float()).norm(dim=-1)
    return found.shape == expected.shape and bool((error <= limit * expected.float().norm(dim=-1)).all())


def _supposed(layer: torch.nn.Module, seen: Seen) -> FlatLayer:
    _demand(isinstance(seen.output, torch.Tensor) and isinstance(seen.hidden, torch.Tensor))
    _demand(seen.operators <= _HARMLESS and len(seen.attended) == 1)
    attended = seen.attended[0]
    before, after = _Calls(seen.calls[: attended.after]), _Calls(seen.calls[attended.after :])
    attention = _attention(seen, attended, before, after)
    gated = _gated(after)
    _demand(before.all_read and after.all_read)
    return FlatLayer(layer, attention, gated)


def _demand(right: bool) -> None:
    if not right:
        raise _UnlikeError


class _Calls:
    """A layer's calls, read one after the other. What has no weights is passed over."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = [call for call in calls if _has_weights(call.module)][::-1]

    @property
    def all_read(self) -> bool:
        return not self._calls

    def norm_of(self, handed: torch.Tensor) -> tuple[Norm, torch.Tensor] | None:
        """The next call, if it is a norm of just this; and what it gave."""
        if not self._calls or self._calls[-1].handed is not handed:
            return None
        return self.norm()

    def norm(self) -> tuple[Norm, torch.Tensor] | None:
        """The next call, if it is a norm; and what it gave."""
        found = _norm(self._calls[-1].module) if self._calls else None
        return (found, self._calls.pop().output) if found else None

    def products(self, handed: torch.Tensor | None = None) -> tuple[Product, list[torch.Tensor]]:
        """The next call and those of its siblings, wherever among the rest they are. And what each gave."""
        _demand(bool(self._calls))
        first = self._calls[-1].module
        calls = [call for call in self._calls[::-1] if call.module is first or _are_siblings(call.module, first)]
        self._calls = [call for call in self._calls if call not in calls]
        parts = [call.module for call in calls if isinstance(call.module, (QuantisedLinear, SiblingLinear))]
        places = [part.index for part in parts if isinstance(part, SiblingLinear)]
        count = len(first.shared.widths) if isinstance(first, SiblingLinear) else 1
        _demand(len(parts) == count and places in ([], list(range(count))))
        _demand(handed is None or all(call.handed is handed for call in calls))
        _demand(len({part.bias is None for part in parts}) == 1)
        return Product(parts), [call.output for call in calls]

    def product_of(self) -> tuple[Product, torch.Tensor, torch.Tensor]:
        """The next call, of one quantised linear layer: what it was handed, and gave."""
        _demand(bool(self._calls))
        handed = self._calls[-1].handed
        product, (output,) = self.products()
        return product, handed, output


def _are_siblings(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return isinstance(one, SiblingLinear) and isinstance(other, SiblingLinear) and one.shared is other.shared


def _has_weights(module: torch.nn.Module) -> bool:
    linear = isinstance(module, (QuantisedLinear, SiblingLinear))
    return linear or any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _needed(found: tuple[Norm, torch.Tensor] | None) -> tuple[Norm, torch.Tensor]:
    if found is None:
        raise _UnlikeError
    return found


def _attention(seen: Seen, attended: Attended, before: _Calls, after: _Calls) -> AttentionForm:
    norm, normed = _needed(before.norm_of(seen.hidden))
    qkv, outputs = before.products(normed)
    heads, _, size = attended.query.shape
    kv_heads = attended.key.shape[0]
    _demand([output.shape[-1] for output in outputs] == [heads * size, kv_heads * size, kv_heads * size])
    _demand(attended.value.shape[-1] == size and attended.options.sinks is None)
    query_norm, key_norm = _head_norms(before, size)
    output, _, result = after.product_of()
    post = after.norm_of(result)
    return AttentionForm(
        norm, qkv, heads, kv_heads, size, query_norm, key_norm, _angles(seen), attended.layer,
        Options(*attended.options), output, post[0] if post else None,
    )  # fmt: skip


def _head_norms(before: _Calls, size: int) -> tuple[Norm | None, Norm | None]:
    """Of queries and of keys: both with the same numbers, or neither."""
    if (query := before.norm()) is None:
        return None, None
    key, _ = _needed(before.norm())
    _demand(query[0].weight.numel() == key.weight.numel() == size and query[0][1:] == key[1:])
    return query[0], key


def _angles(seen: Seen) -> Callable[[Arguments], tuple[torch.Tensor, torch.Tensor]]:
    """Where among the layer's arguments the pair of cosines and sines stands: the only pair of tensors [1, T, n]."""
    found = [
        path
        for path, tensor in leaves_of((seen.args, seen.kwargs))
        if tensor.dim() == 3 and tensor.is_floating_point() and tensor is not seen.hidden
    ]
    _demand(len(found) == 2 and len(found[0]) > 2 and found[0][:-1] == found[1][:-1])
    one, other = found

    def angles(call: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
        return _at(call, one), _at(call, other)

    return angles


def _at(whole: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        whole = whole[key]
    return whole


def _gated(after: _Calls) -> GatedForm:
    norm, normed = _needed(after.norm())
    gate_up, outputs = after.products(normed)
    _demand(len(outputs) == 2 and outputs[0].shape == outputs[1].shape)
    down, inner, result = after.product_of()
    activation = next((number for number, act in enumerate(_ACTIVATIONS) if _gates(act, outputs, inner)), None)
    post = after.norm_of(result)
    if activation is None:
        raise _UnlikeError
    return GatedForm(norm, gate_up, activation, down, post[0] if post else None)


def _tanh_gelu(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(values, approximate="tanh")


_ACTIVATIONS: Final = (torch.nn.functional.silu, _tanh_gelu)
"""As the operator numbers them."""


def _gates(
    activation: Callable[[torch.Tensor], torch.Tensor], outputs: list[torch.Tensor], inner: torch.Tensor
) -> bool:
    gate, up = (output.float() for output in outputs)
    return _close(activation(gate) * up, inner, _NORM_ERROR)


def _norm(module: torch.nn.Module) -> Norm | None:
    """The module's numbers, if it is a root mean square norm: found by trying those that it has."""
    weights = list(module.parameters())
    if len(weights) != 1 or weights[0].dim() != 1 or list(module.children()):
        return None
    numbers = [value for value in vars(module).values() if isinstance(value, float)]
    supposed = [Norm(weights[0], eps, offset) for eps in numbers for offset in (0.0, 1.0)]
    return next((norm for norm in supposed if _is(norm, module)), None)


def _is(norm: Norm, module: torch.nn.Module) -> bool:
    noise = torch.randn(3, norm.weight.numel(), generator=torch.Generator().manual_seed(5))
    return all(
        _close(norm(rows), module(rows), _NORM_ERROR)
        for size in (_NORMAL, _TINY)
        for rows in [(noise * size).to(norm.weight.dtype)]
    )
