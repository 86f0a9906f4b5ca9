"""Tensors and their bytes on the wire, without a copy in Python on either side.

Must never import transformers or know what a link is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from typing import Final

import torch

from transport.contracts import TensorBuffer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import TensorSpec

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a plan may compute in, and what hidden states may have on the wire."""

PLAIN: Final = {**DTYPES, "int32": torch.int32, "int64": torch.int64}
"""What may cross the wire as it is: beside hidden states also token ids and chosen positions."""

CODES: Final = {"int8": torch.int8, "uint8": torch.uint8}
"""What rounded hidden states cross it in, with their scales beside them."""

_NAMES: Final = {dtype: name for name, dtype in (PLAIN | CODES).items()}


def to_buffer(name: str, tensor: torch.Tensor) -> TensorBuffer:
    """Describe `tensor` (any shape, of a dtype that may cross the wire) and lend its bytes.

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


def from_buffer(buffer: TensorBuffer, allowed: Mapping[str, torch.dtype] = PLAIN) -> torch.Tensor:
    """A tensor [tokens, width] on the CPU, sharing the receive buffer's memory.

    Raises RemoteProtocolError for another rank, a dtype that is not `allowed`, a length that contradicts the shape, or
    values that are not finite.
    """
    spec = buffer.spec
    dtype = allowed.get(spec.dtype)
    if dtype is None:
        raise RemoteProtocolError(f"Hidden states came as {spec.dtype}; only {', '.join(allowed)} are allowed.")
    if len(spec.shape) != 2 or min(spec.shape) < 0:
        raise RemoteProtocolError(f"Hidden states came with shape {spec.shape}; [tokens, hidden] is allowed.")
    if prod(spec.shape) * dtype.itemsize != buffer.data.nbytes:
        raise RemoteProtocolError(f"{buffer.data.nbytes} bytes came for hidden states of shape {spec.shape}.")
    return _finite(_over(buffer.data, dtype).reshape(spec.shape))


def _over(data: memoryview, dtype: torch.dtype) -> torch.Tensor:
    if data.nbytes == 0:
        return torch.empty(0, dtype=dtype)
    # torch warns about read-only memory, which it cannot mark as such: those (never a receive buffer) are copied.
    return torch.frombuffer(bytearray(data) if data.readonly else data, dtype=dtype)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """One pass for both ends, which tell of all between them: a twentieth of asking each element."""
    if tensor.numel() and tensor.is_floating_point() and not all(map(isfinite, map(float, torch.aminmax(tensor)))):
        raise RemoteProtocolError("Hidden states came with values that are not finite.")
    return tensor
