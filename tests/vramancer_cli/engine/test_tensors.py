from __future__ import annotations

import gc
import struct

import pytest
import torch

from transport.contracts import TensorBuffer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import TensorSpec
from vramancer_cli.engine import tensors


@pytest.mark.parametrize("dtype", tensors.DTYPES.values())
def test_a_tensor_crosses_as_it_was(dtype: torch.dtype):
    hidden = torch.randn(3, 8).to(dtype)
    buffer = tensors.to_buffer("hidden_states", hidden)
    assert (buffer.spec.name, buffer.spec.shape) == ("hidden_states", (3, 8))
    assert (buffer.data.format, buffer.data.nbytes, buffer.data.c_contiguous) == ("B", hidden.nbytes, True)
    assert torch.equal(tensors.from_buffer(buffer), hidden)


def test_neither_side_copies():
    hidden = torch.zeros(2, 4)
    buffer = tensors.to_buffer("h", hidden)
    received = tensors.from_buffer(buffer)
    hidden[1, 3] = 7.0
    assert received[1, 3] == 7.0
    assert received.data_ptr() == hidden.data_ptr()


def test_the_view_keeps_the_memory_alive():
    buffer = tensors.to_buffer("h", torch.full((256, 1024), 2.0))
    gc.collect()
    torch.zeros(256, 1024)  # would take the freed memory
    assert bytes(buffer.data) == struct.pack("<f", 2.0) * 256 * 1024


def test_a_tensor_that_is_not_contiguous_is_sent_row_major():
    hidden = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(tensors.from_buffer(tensors.to_buffer("h", hidden)), hidden)


def test_tensors_from_inference_and_empty_ones_cross_too():
    with torch.inference_mode():
        hidden = torch.ones(1, 4) * 2
    assert torch.equal(tensors.from_buffer(tensors.to_buffer("h", hidden)), hidden)
    assert tensors.from_buffer(tensors.to_buffer("h", torch.empty(0, 4))).shape == (0, 4)


def test_a_dtype_outside_the_wire_is_refused_before_sending():
    with pytest.raises(LocalProtocolError, match="float64"):
        tensors.to_buffer("h", torch.zeros(1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "why"),
    [
        ("int8", (1, 4), bytes(4), "int8"),
        ("pickle", (1, 4), bytes(16), "pickle"),
        ("float32", (4,), bytes(16), "shape"),
        ("float32", (1, 2, 2), bytes(16), "shape"),
        ("float32", (-1, -4), bytes(16), "shape"),
        ("float32", (1, 5), bytes(16), "16 bytes"),
        ("float32", (1 << 40, 1 << 40), bytes(16), "16 bytes"),
        ("float32", (1, 1), b"\x00\x00\xc0\x7f", "not finite"),
        ("float32", (1, 1), b"\x00\x00\x80\xff", "not finite"),
        ("bfloat16", (1, 2), b"\x00\x00\x80\x7f", "not finite"),
    ],
)
def test_wrong_buffers_are_refused(dtype: str, shape: tuple[int, ...], data: bytes, why: str):
    buffer = TensorBuffer(TensorSpec("h", dtype, shape, 0), memoryview(bytearray(data)))
    with pytest.raises(RemoteProtocolError, match=why):
        tensors.from_buffer(buffer)


def test_read_only_memory_is_copied_without_a_warning(recwarn: pytest.WarningsRecorder):
    buffer = TensorBuffer(TensorSpec("h", "float32", (1, 1), 0), memoryview(b"\x00\x00\x80\x3f"))
    assert tensors.from_buffer(buffer).item() == 1.0
    assert not recwarn.list
