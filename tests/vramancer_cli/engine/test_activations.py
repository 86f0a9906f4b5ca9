"""Hidden states in int8 and int4: how far off they come back, what is refused, and that text stays."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.stepping import Driver, Request, make_plan
from transport.contracts import TensorBuffer
from transport.errors import RemoteProtocolError
from transport.types import ActivationFormat, TensorSpec
from vramancer_cli.engine.activations import RoundingCost, restored, rounded
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.seam import HIDDEN, SCALES
from vramancer_cli.engine.tensors import DTYPES, to_buffer
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import NonFiniteError
from vramancer_cli.models.activation_format import CODE_BITS, GROUP_ELEMENTS, crossing_bytes
from vramancer_cli.models.catalog import builtin_folder

FORMATS: tuple[ActivationFormat, ...] = ("int8", "int4")
MOST = {"int8": 127, "int4": 7}


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine("cpu", limit_bytes=1 << 29, threads=1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", DTYPES)
@given(seed=st.integers(0, 2**32), spread=st.floats(0, 4), tokens=st.integers(1, 5))
def test_every_element_comes_back_within_half_a_scale(
    form: ActivationFormat, name: str, seed: int, spread: float, tokens: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, 256, generator=generator) * torch.exp(spread * torch.randn(256, generator=generator))
    rows = rows.clamp(-3e4, 3e4).to(DTYPES[name])
    codes, scales = rounded(rows, form)
    back = restored(codes, scales)
    assert back.dtype == rows.dtype and back.shape == rows.shape
    groups = rows.double().unflatten(1, (-1, GROUP_ELEMENTS[form]))
    largest = groups.abs().amax(-1, keepdim=True)
    # Half a step; the scale's and the product's own rounding, each of half a unit in the last place; a float16 scale
    # that is subnormal is off by its smallest step.
    unit = torch.finfo(rows.dtype).eps
    tiny = torch.finfo(rows.dtype).smallest_normal * unit
    bound = largest * (0.5 / MOST[form] + 1.01 * unit) + MOST[form] * tiny
    assert bool(((back.double().unflatten(1, (-1, GROUP_ELEMENTS[form])) - groups).abs() <= bound).all())


@pytest.mark.parametrize("form", FORMATS)
def test_they_take_what_the_planner_thinks(form: ActivationFormat) -> None:
    rows = torch.randn(7, 512).to(torch.bfloat16)
    parts = rounded(rows, form)
    assert sum(part.nbytes for part in parts) == crossing_bytes(rows.nbytes, "bfloat16", form)
    assert parts[0].nbytes * 8 == rows.numel() * CODE_BITS[form]


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_does_not_feel_its_neighbours_whatever_their_number(form: ActivationFormat) -> None:
    row = torch.randn(1, 256)
    crowd = torch.cat([torch.randn(3000, 256) * 1000, row])
    for alone, among in zip(rounded(row, form), rounded(crowd, form), strict=True):
        assert torch.equal(alone[0], among[-1])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_at_the_other_end(
    engine: TorchEngine, form: ActivationFormat, value: float
) -> None:
    """As from a node that does not look at what it sends: ours refuses to round it."""
    rows = torch.randn(3, 128)
    rows[1, 77] = value
    with pytest.raises(NonFiniteError):
        received(engine, rows, form)
    codes, scales = rounded(rows, form)
    buffers = {name: to_buffer(name, tensor) for name, tensor in ((SCALES, scales), (HIDDEN, codes))}
    with pytest.raises(RemoteProtocolError, match="not finite"):
        engine.from_buffers(buffers)


def test_zeros_stay_zeros() -> None:
    for form in FORMATS:
        assert not restored(*rounded(torch.zeros(2, 64), form)).any()


@pytest.mark.parametrize(("width", "code_width", "groups"), [(100, 100, 1), (96, 96, 1), (64, 32, 2), (1, 1, 1)])
def test_rows_that_int4_does_not_divide_become_int8(width: int, code_width: int, groups: int) -> None:
    codes, scales = rounded(torch.randn(2, width), "int4")
    assert (codes.shape, scales.shape) == ((2, code_width), (2, groups))
    assert restored(codes, scales).shape == (2, width)


def test_no_tokens_are_no_tokens(engine: TorchEngine) -> None:
    for form in FORMATS:
        assert engine.from_buffers(received(engine, torch.empty(0, 128), form)).hidden.shape == (0, 128)


def received(engine: TorchEngine, rows: torch.Tensor, form: ActivationFormat) -> dict[str, TensorBuffer]:
    return {buffer.spec.name: buffer for buffer in engine.to_buffers(Boundary(rows), form)}


def test_the_wider_tensor_comes_first_and_what_is_beside_stays_as_it_is(engine: TorchEngine) -> None:
    beside = torch.arange(6).reshape(3, 2)
    buffers = engine.to_buffers(Boundary(torch.randn(3, 128).bfloat16(), {"ids": beside}), "int8")
    assert [(b.spec.name, b.spec.dtype) for b in buffers] == [("ids", "int64"), (SCALES, "bfloat16"), (HIDDEN, "int8")]
    back = engine.from_buffers({buffer.spec.name: buffer for buffer in buffers})
    assert torch.equal(back.beside["ids"], beside) and back.beside.keys() == {"ids"}


def codes_of(dtype: str, shape: tuple[int, int]) -> TensorBuffer:
    return TensorBuffer(TensorSpec(HIDDEN, dtype, shape, 0), memoryview(bytearray(shape[0] * shape[1])))


@pytest.mark.parametrize(
    ("codes", "scales", "why"),
    [
        (codes_of("int8", (2, 128)), torch.ones(3, 1), "came with scales"),
        (codes_of("int8", (2, 128)), torch.ones(2, 3), "came with scales"),
        (codes_of("int8", (2, 128)), torch.ones(2, 0), "came with scales"),
        (codes_of("int8", (2, 0)), torch.ones(2, 1), "came with scales"),
        (codes_of("int8", (2, 128)), torch.ones(2, 1, dtype=torch.int64), "with scales of"),
        (to_buffer(HIDDEN, torch.ones(2, 128)), torch.ones(2, 1), "float32"),
        (codes_of("uint8", (4097, 8192)), torch.ones(4097, 1), "no frame holds as many"),
    ],
    ids=["rows", "groups", "none", "empty", "whole numbers", "not codes", "more than a frame"],
)
def test_codes_that_do_not_fit_their_scales_are_refused(
    engine: TorchEngine, codes: TensorBuffer, scales: torch.Tensor, why: str
) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        engine.from_buffers({HIDDEN: codes, SCALES: to_buffer(SCALES, scales)})


def test_codes_without_scales_and_scales_alone_are_refused(engine: TorchEngine) -> None:
    with pytest.raises(RemoteProtocolError, match="int8"):
        engine.from_buffers({HIDDEN: codes_of("int8", (2, 128))})
    scale = TensorBuffer(TensorSpec(SCALES, "float32", (1, 1), 0), memoryview(bytearray(struct.pack("<f", 1.0))))
    with pytest.raises(RemoteProtocolError, match="without hidden states"):
        engine.from_buffers({SCALES: scale})


def test_what_rounding_costs_is_measured_once_and_grows_with_the_rows() -> None:
    cost = RoundingCost(torch.device("cpu"))
    few, many = torch.zeros(1, 64), torch.zeros(64, 64)
    assert 0 < cost.seconds("int8", few) <= cost.seconds("int8", many) == cost.seconds("int8", many)
    assert len(cost._known) == 1


QUESTIONS = (
    "How do I add a second machine?",
    "What is a token?",
    "Why is the first word slow?",
    "What do I do when a machine dies?",
    "Is it safe to use?",
    "hello",
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_between_two_stages_changes_no_text_of_the_built_in_model(engine: TorchEngine, dtype: str) -> None:
    plain, int8 = (answers(engine, dtype, form) for form in ("plain", "int8"))
    assert [request.generated for request in int8] == [request.generated for request in plain]
    changed = [
        not torch.equal(*pair)
        for a, b in zip(plain, int8, strict=True)
        for pair in zip(a.logits, b.logits, strict=True)
    ]
    assert all(changed), "nothing was rounded"


def answers(engine: TorchEngine, dtype: str, form: ActivationFormat) -> list[Request]:
    from tokenizers import Tokenizer

    folder = builtin_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = (tokenizer.encode(f"<|begin|><|user|>{question}<|end|><|assistant|>").ids for question in QUESTIONS)
    requests = [Request(ids, 24) for ids in asked]  # as its chat template writes them
    driver = Driver(engine, folder, make_plan(engine, folder, 2, dtype=dtype), activations=form)
    try:
        driver.run(requests)
    finally:
        driver.close()
    return requests
