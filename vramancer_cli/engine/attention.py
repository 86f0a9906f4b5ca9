"""Attention for every family: one function that transformers' layers call, and the arithmetic for one sequence.

The layers find it under a name in transformers' AttentionInterface; what they attend to travels beside the hidden
states as the keyword `paged`, from the base model's call down to here. No mask is registered under that name:
transformers then builds none, and the causal order is kept here, per sequence.
Must never import the runtime's contracts or hold state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vramancer_cli.errors import ModelError

NAME: Final = "vramancer_paged"

QUERY_TILE_TOKENS: Final = 256
"""Queries handled at once where a mask or scores are needed in full: bounds them to 256 x context."""


class Options(NamedTuple):
    """What a layer asks for beyond plain causal attention. `sinks`: one extra logit per query head."""

    scaling: float | None = None
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class AttentionContext(Protocol):
    """The batch that a layer's queries, keys and values belong to."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """[heads, T, key_dim], [kv_heads, T, key_dim], [kv_heads, T, value_dim] in; [T, heads, value_dim] out."""
        ...


def register() -> None:
    """Make the name known to transformers; may be called again."""
    AttentionInterface.register(NAME, _from_layer)


def _from_layer(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: AttentionContext | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """A layer's call: query, key and value are [1, heads, T, head_dim]; gives [1, T, heads, value_dim]."""
    if paged is None or attention_mask is not None or is_causal is False:
        raise ModelError("This family's layers do not use attention in a way that can be paged.")
    if query.is_meta:
        _refuse_unknown(_others)
    options = Options(scaling, sliding_window, softcap, s_aux)
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]  # an attribute of every attention module
    return paged.attend(layer, query[0], key[0], value[0], options)[None], None


def _refuse_unknown(others: Mapping[str, Any]) -> None:
    """In a dry run: a tensor that would be left out here would be left out of the answer."""
    unknown = [name for name, value in others.items() if isinstance(value, torch.Tensor) and name != "position_ids"]
    if unknown:
        raise ModelError(f"This family's layers attend with '{unknown[0]}', which cannot be paged.")


def attend_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, options: Options
) -> torch.Tensor:
    """Causal attention of one sequence's new tokens over all of its tokens.

    query [heads, count, key_dim] at positions start...; key [kv_heads, start + count, key_dim] and value alike, at
    positions 0...; heads is a multiple of kv_heads. Gives [heads, count, value_dim].
    """
    count = query.shape[1]
    if options.softcap is None and options.sinks is None:
        if count == 1:
            return _attend_one(query, key, value, options)
        if start == 0 and (options.sliding_window is None or options.sliding_window >= count):
            return _fused(query, key, value, options, is_causal=True)
    tiles = [
        _attend_tile(query[:, first : first + QUERY_TILE_TOKENS], key, value, start + first, options)
        for first in range(0, count, QUERY_TILE_TOKENS)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)


def _attend_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options) -> torch.Tensor:
    """One new token sees everything, or the window's last tokens: no mask is needed.

    The query heads that share a key head stand in the place of several tokens: so no key is repeated for them, which at
    long contexts costs more than the attention itself.
    """
    if options.sliding_window is not None:
        key, value = key[:, -options.sliding_window :], value[:, -options.sliding_window :]
    heads, kv_heads = query.shape[0], key.shape[0]
    output = _fused(query.reshape(kv_heads, heads // kv_heads, -1), key, value, options)
    return output.reshape(heads, 1, -1)


def reads_parts(query: torch.Tensor, key_size: int, value_size: int, options: Options) -> bool:
    """Whether `attend_parts` can do what `options` ask for, where the query lies."""
    plain = options.softcap is None and options.sinks is None and options.sliding_window is None
    return plain and query.device.type == "cpu" and key_size == value_size


def attend_parts(
    query: torch.Tensor, parts: Iterable[tuple[torch.Tensor, torch.Tensor]], options: Options
) -> torch.Tensor:
    """One new token over keys and values that come in parts, [kv_heads, any, size] each: [heads, 1, size] in and out.

    Each part has a softmax of its own, and a share in the result by the sum behind it (Dao 2023, flash-decoding). The
    parts must be cut by position alone, so that the result does not depend on where they lie in memory.
    """
    heads = query.shape[0]
    outputs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for key, value in parts:
        grouped = query.reshape(1, key.shape[0], heads // key.shape[0], -1)
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            grouped, key[None], value[None], scale=options.scaling
        )
        outputs.append(output)
        sums.append(log_sum)
    shares = torch.stack(sums).softmax(0)[..., None]
    total = (torch.stack(outputs) * shares).sum(0)
    return total.to(query.dtype).reshape(heads, 1, -1)


def _attend_tile(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, options: Options
) -> torch.Tensor:
    """As attend_sequence, for at most QUERY_TILE_TOKENS queries; keys that none of them may see are left out."""
    end = start + query.shape[1]
    window = options.sliding_window
    first = 0 if window is None else max(0, start - window + 1)
    key, value = key[:, first:end], value[:, first:end]
    mask = visible(start, end, first, window, query.device)
    if options.softcap is None and options.sinks is None:
        return _fused(query, key, value, options, mask=mask)
    return _explicit(query, key, value, mask, options)


def visible(start: int, end: int, first: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[end - start, end - first] bool: which keys at positions first...end the queries at start...end may see."""
    queries = torch.arange(start, end, device=device)[:, None]
    keys = torch.arange(first, end, device=device)[None]
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: Options,
    *,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, is_causal=is_causal, scale=options.scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )[0]  # fmt: skip


def _explicit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, options: Options
) -> torch.Tensor:
    """Scores in full, for what the fused kernels lack: capped scores, and sinks that take a share of the softmax."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scaling = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = (query @ key.transpose(1, 2)) * scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is None:
        return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value
    sinks = options.sinks.reshape(-1, 1, 1).to(scores.dtype).expand(-1, scores.shape[1], 1)
    shares = torch.softmax(torch.cat([scores, sinks], -1), -1, dtype=torch.float32)[..., :-1]
    return shares.to(query.dtype) @ value
