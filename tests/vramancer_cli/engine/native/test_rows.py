"""What is done to rows between products, and attention of single tokens: right on every instruction set, the same bits
whoever the neighbours are, and never beyond a tensor."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from vramancer_cli.engine import native

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")

DTYPES = pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)], ids=str)
BLOCK = 4


def close(found: torch.Tensor, expected: torch.Tensor, error: float) -> bool:
    return bool(((found.to(expected.dtype) - expected).abs() <= error * (1 + expected.abs())).all())


@DTYPES
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms(instruction_set: int, dtype: torch.dtype, error: float, offset: float):
    for width in (1, 17, 64, 2048):
        rows, more, weight = (torch.randn(3, width).to(dtype) for _ in range(3))
        exact = rows.float()
        expected = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * (weight[0].float() + offset)
        assert close(torch.ops.vramancer.rms_norm(rows, weight[0].clone(), 1e-5, offset), expected, error)
        both = rows + more
        normed = torch.ops.vramancer.add_rms_norm(rows, more, weight[0].clone(), 1e-5, offset)
        assert torch.equal(rows, both)
        assert torch.equal(normed, torch.ops.vramancer.rms_norm(both, weight[0].clone(), 1e-5, offset))


@DTYPES
def test_gates(instruction_set: int, dtype: torch.dtype, error: float):
    both = (torch.randn(3, 2 * 37) * 20).to(dtype)
    both[0, :3] = torch.tensor([-200.0, 200.0, 0.0])
    gate, up = both.double().split(37, 1)  # torch's own float32 gelu loses digits where it is nearly nothing
    assert close(torch.ops.vramancer.gated(both, 0), silu(gate) * up, error)
    assert close(torch.ops.vramancer.gated(both, 1), gelu(gate, approximate="tanh") * up, error)


@DTYPES
@pytest.mark.parametrize("rotated", [8, 16])
def test_positions_and_norms_of_heads(instruction_set: int, dtype: torch.dtype, error: float, rotated: int):
    rows, cos, sin = (
        torch.randn(3, 6 * 16).to(dtype),
        torch.randn(3, rotated).to(dtype),
        torch.randn(3, rotated).to(dtype),
    )
    weights = [torch.randn(16).to(dtype) for _ in range(2)]
    before = rows.clone()
    torch.ops.vramancer.rotate(rows, cos, sin, *weights, 3, 2, 16, 1e-6, 0.0)
    heads = before.view(3, 6, 16)
    for head in range(5):
        normed = torch.ops.vramancer.rms_norm(heads[:, head].contiguous(), weights[head >= 3], 1e-6, 0.0).float()
        turned, half = normed[:, :rotated], rotated // 2
        other = torch.cat((-turned[:, half:], turned[:, :half]), -1)
        expected = torch.cat((turned * cos.float() + other * sin.float(), normed[:, rotated:]), -1)
        assert close(rows.view(3, 6, 16)[:, head], expected, 3 * error)
    assert torch.equal(rows[:, 5 * 16 :], before[:, 5 * 16 :])


class Scene:
    """Two sequences in scattered blocks, and tokens that see parts of them."""

    def __init__(self, dtype: torch.dtype, heads: int = 6, kv_heads: int = 2, sizes: tuple[int, int] = (64, 64)):
        torch.manual_seed(1)
        self.keys, self.values = (torch.randn(160 * BLOCK, kv_heads, size).to(dtype) for size in sizes)
        self.tables = torch.stack([torch.randperm(160)[:70] for _ in range(2)]).int()
        self.places = torch.tensor([[0, 0, 1], [0, 0, 200], [1, 17, 280], [1, 63, 65], [0, 64, 128]], dtype=torch.int32)
        self.query = torch.randn(5, heads, sizes[0]).to(dtype)

    def attend(self, softcap: float = 0.0) -> torch.Tensor:
        given = self.query, self.keys, self.values, self.tables, self.places
        return torch.ops.vramancer.attend_paged(*given, BLOCK, 0.2, softcap)

    def expected(self, token: int, softcap: float = 0.0) -> torch.Tensor:
        table, first, end = self.places[token].tolist()
        slots = torch.tensor([int(self.tables[table][p // BLOCK]) * BLOCK + p % BLOCK for p in range(first, end)])
        repeats = self.query.shape[1] // self.keys.shape[1]
        key, value = (
            kept[slots].double().transpose(0, 1).repeat_interleave(repeats, 0) for kept in (self.keys, self.values)
        )
        scores = (self.query[token].double()[:, None] @ key.transpose(1, 2)) * 0.2
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        return (scores.softmax(-1) @ value)[:, 0].float()


@DTYPES
@pytest.mark.parametrize("sizes", [(64, 64), (128, 128), (24, 40)], ids=str)
@pytest.mark.parametrize("heads", [(8, 2), (2, 2), (6, 1)], ids=str)
def test_attention(
    instruction_set: int, dtype: torch.dtype, error: float, sizes: tuple[int, int], heads: tuple[int, int]
):
    scene = Scene(dtype, *heads, sizes)
    for softcap in (0.0, 5.0):
        found = scene.attend(softcap)
        assert found.dtype == dtype
        for token in range(5):
            assert close(found[token], scene.expected(token, softcap), 4 * error), token


@DTYPES
def test_a_token_has_the_same_bits_alone_and_wherever_its_blocks_lie(
    instruction_set: int, dtype: torch.dtype, error: float
):
    scene = Scene(dtype)
    together = scene.attend()
    moved = torch.randperm(160)
    scene.keys, scene.values = (
        torch.empty_like(kept).view(160, -1).index_copy_(0, moved, kept.view(160, -1)).view_as(kept)
        for kept in (scene.keys, scene.values)
    )
    scene.tables = moved[scene.tables.long()].int()
    every_query, every_place = scene.query, scene.places
    for token in range(5):
        scene.query, scene.places = every_query[token : token + 1], every_place[token : token + 1]
        assert torch.equal(scene.attend()[0], together[token])


def test_attention_agrees_with_torchs():
    scene = Scene(torch.float32)
    scene.places = torch.tensor([[0, 0, 256]] * 5, dtype=torch.int32)
    slots = torch.cat([torch.arange(BLOCK) + block * BLOCK for block in scene.tables[0].tolist()])[:256]
    key, value = scene.keys[slots].transpose(0, 1), scene.values[slots].transpose(0, 1)
    theirs = scaled_dot_product_attention(scene.query.transpose(0, 1), key, value, scale=0.2, enable_gqa=True)
    assert close(scene.attend(), theirs.transpose(0, 1), 1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scene: scene.tables.fill_(160),
        lambda scene: scene.tables.fill_(-1),
        lambda scene: scene.places[0].fill_(2),
        lambda scene: scene.places.__setitem__((1, 2), 70 * BLOCK + 1),
        lambda scene: scene.places.__setitem__((1, 1), 200),
        lambda scene: scene.places.__setitem__((1, 1), -1),
        lambda scene: setattr(scene, "query", scene.query.bfloat16()),
        lambda scene: setattr(scene, "query", scene.query[:, :5]),
        lambda scene: setattr(scene, "values", scene.values[:8]),
        lambda scene: setattr(scene, "places", scene.places.long()),
    ],
)
def test_attention_reads_nothing_that_is_not_there(spoil: object):
    scene = Scene(torch.float32)
    spoil(scene)  # pyright: ignore[reportCallIssue]
    with pytest.raises(RuntimeError, match="vramancer"):
        scene.attend()


def test_rows_that_do_not_fit_are_refused():
    rows = torch.randn(2, 8)
    for call in (
        lambda: torch.ops.vramancer.rms_norm(rows, torch.ones(7), 1e-6, 0.0),
        lambda: torch.ops.vramancer.rms_norm(rows.half(), torch.ones(8).half(), 1e-6, 0.0),
        lambda: torch.ops.vramancer.add_rms_norm(rows, rows[:1], torch.ones(8), 1e-6, 0.0),
        lambda: torch.ops.vramancer.gated(torch.randn(2, 7), 0),
        lambda: torch.ops.vramancer.gated(rows, 2),
        lambda: torch.ops.vramancer.rotate(rows, rows, rows, rows[0, :0], rows[0, :0], 2, 1, 8, 1e-6, 0.0),
    ):
        with pytest.raises(RuntimeError, match="vramancer"):
            call()
