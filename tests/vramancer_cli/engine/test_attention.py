from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as eager_with_softcap
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as eager_with_sinks

from vramancer_cli.engine import attention
from vramancer_cli.engine.attention import Options, attend_sequence
from vramancer_cli.errors import ModelError

HEADS, KV_HEADS, SIZE, VALUE_SIZE = 4, 2, 8, 6


class Groups(torch.nn.Module):
    """What transformers' eager functions read off an attention module."""

    def __init__(self, sinks: torch.Tensor | None = None) -> None:
        super().__init__()
        self.num_key_value_groups = HEADS // KV_HEADS
        self.sinks = sinks
        self.eval()


def tensors(start: int, count: int, value_size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(start * 1000 + count)
    shapes = [(HEADS, count, SIZE), (KV_HEADS, start + count, SIZE), (KV_HEADS, start + count, value_size)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def visible(start: int, count: int, window: int | None) -> torch.Tensor:
    """The definition: position q sees k when k <= q and, with a window, q - k < window."""
    rows = [
        [k <= q and (window is None or q - k < window) for k in range(start + count)]
        for q in range(start, start + count)
    ]
    return torch.tensor(rows)


def by_definition(start: int, count: int, options: Options) -> torch.Tensor:
    """In float64, one query head at a time."""
    query, key, value = (tensor.double() for tensor in tensors(start, count))
    mask = visible(start, count, options.sliding_window)
    outputs: list[torch.Tensor] = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = query[head] @ key[group].T * (options.scaling or SIZE**-0.5)
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        shares = scores.masked_fill(~mask, -torch.inf).exp()
        total = shares.sum(-1, keepdim=True)
        if options.sinks is not None:
            total = total + options.sinks[head].double().exp()
        outputs.append(shares / total @ value[group])
    return torch.stack(outputs)


@settings(deadline=None, max_examples=40)
@given(
    start=st.integers(0, 40),
    count=st.integers(1, 24),
    window=st.none() | st.integers(1, 30),
    softcap=st.none() | st.just(5.0),
    scaling=st.none() | st.just(0.3),
    with_sinks=st.booleans(),
)
def test_any_chunk_of_any_sequence_is_what_the_definition_says(
    start: int, count: int, window: int | None, softcap: float | None, scaling: float | None, with_sinks: bool
):
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if with_sinks else None
    options = Options(scaling, window, softcap, sinks)
    got = attend_sequence(*tensors(start, count), start, options)
    torch.testing.assert_close(got.double(), by_definition(start, count, options), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 100])
def test_long_chunks_in_tiles_are_the_same(window: int | None):
    start, count = 10, 2 * attention.QUERY_TILE_TOKENS + 7
    options = Options(sliding_window=window)
    got = attend_sequence(*tensors(start, count), start, options)
    torch.testing.assert_close(got.double(), by_definition(start, count, options), atol=2e-5, rtol=1e-4)


def test_keys_and_values_may_differ_in_size():
    query, key, value = tensors(3, 5, VALUE_SIZE)
    assert attend_sequence(query, key, value, 3, Options()).shape == (HEADS, 5, VALUE_SIZE)
    assert attend_sequence(query, key, value, 3, Options(softcap=2.0)).shape == (HEADS, 5, VALUE_SIZE)


def test_softcap_and_sinks_agree_with_transformers_own():
    query, key, value = tensors(0, 9)
    mask = torch.where(visible(0, 9, None), 0.0, torch.finfo(torch.float32).min)[None, None]
    batch = query[None], key[None], value[None], mask
    capped, _ = eager_with_softcap(Groups(), *batch, scaling=0.2, softcap=3.0)
    got = attend_sequence(query, key, value, 0, Options(0.2, None, 3.0))
    torch.testing.assert_close(got.transpose(0, 1), capped[0])
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    sunk, _ = eager_with_sinks(Groups(sinks), *batch, scaling=0.2)
    got = attend_sequence(query, key, value, 0, Options(0.2, sinks=sinks))
    torch.testing.assert_close(got.transpose(0, 1), sunk[0])


def test_bfloat16_stays_bfloat16():
    query, key, value = (tensor.bfloat16() for tensor in tensors(4, 3))
    for options in (Options(), Options(softcap=4.0)):
        assert attend_sequence(query, key, value, 4, options).dtype == torch.bfloat16


def test_a_layer_that_brings_a_mask_or_no_batch_is_refused():
    from_layer = attention._from_layer
    query, key, value = (tensor[None] for tensor in tensors(0, 2))
    with pytest.raises(ModelError, match="paged"):
        from_layer(Groups(), query, key, value, None)
    with pytest.raises(ModelError, match="paged"):
        from_layer(Groups(), query, key, value, torch.zeros(1, 1, 2, 2), paged=None)
