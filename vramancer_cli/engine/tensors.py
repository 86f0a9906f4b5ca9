"""Tensors and their bytes on the wire, without a copy in Python on either side.

Must never import transformers or know what a link is.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from transport.contracts import TensorBuffer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import TensorSpec

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a plan may compute in, and what hidden states may have on the wire."""

_WIRE_DTYPES: Final = {**DTYPES, "int32": torch.int32, "int64": torch.int64}
"""What may cross the wire: beside hidden states also token ids and chosen positions."""

_NAMES: Final = {dtype: name for name, dtype in _WIRE_DTYPES.items()}


def to_buffer(name: str, tensor: torch.Tensor) -> TensorBuffer:
    """Describe `tensor` (any shape, of a float dtype, int32 or int64) and lend its bytes.

    For a contiguous CPU tensor the view lies on its own storage and keeps it alive; the tensor must not be written
    to before the view is dropped. Raises LocalProtocolError for another dtype.
    """
    if tensor.dtype not in _NAMES:
        raise LocalProtocolError(f"A tensor of {tensor.dtype} cannot cross the wire.")
    contiguous = tensor.detach().cpu().contiguous()
    spec = TensorSpec(name, _NAMES[tensor.dtype], tuple(tensor.shape), 0)
    return TensorBuffer(spec, byte_view(contiguous))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, format "B", on its own storage, which the view keeps alive."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]  # arrays are buffers


def from_buffer(buffer: TensorBuffer) -> torch.Tensor:
    """A tensor [tokens, width] on the CPU, sharing the receive buffer's memory.

    Raises RemoteProtocolError for another rank, an unknown dtype, a length that contradicts the shape, or values
    that are not finite.
    """
    spec = buffer.spec
    dtype = _WIRE_DTYPES.get(spec.dtype)
    if dtype is None:
        raise RemoteProtocolError(f"Hidden states came as {spec.dtype}; only {', '.join(_WIRE_DTYPES)} are allowed.")
    if len(spec.shape) != 2 or min(spec.shape) < 0:
        raise RemoteProtocolError(f"Hidden states came with shape {spec.shape}; [tokens, hidden] is allowed.")
    if math.prod(spec.shape) * dtype.itemsize != buffer.data.nbytes:
        raise RemoteProtocolError(f"{buffer.data.nbytes} bytes came for hidden states of shape {spec.shape}.")
    return _finite(_over(buffer.data, dtype).reshape(spec.shape))


def _over(data: memoryview, dtype: torch.dtype) -> torch.Tensor:
    if data.nbytes == 0:
        return torch.empty(0, dtype=dtype)
    # torch warns about read-only memory, which it cannot mark as such: those (never a receive buffer) are copied.
    return torch.frombuffer(bytearray(data) if data.readonly else data, dtype=dtype)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise RemoteProtocolError("Hidden states came with values that are not finite.")
    return tensor
