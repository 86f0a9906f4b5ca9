"""Tensors from one device of this machine to another: directly where one reads the other, else by pinned memory.

Called on the thread of the device that a tensor leaves, so that the copy stands right behind what makes it in that
device's stream. Where both are GPUs nothing waits for it but the receiving stream; every wait is within torch, which
does not hold the interpreter's lock. Must never know what a stage is.

See "CUDA semantics" in torch's documentation: pinned memory buffers, asynchronous copies, streams.
"""

from __future__ import annotations

import torch


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`: itself, if it is there."""
    if tensor.device == device:
        return tensor
    if tensor.is_cuda and device.type == "cuda":
        reaches = torch.cuda.can_device_access_peer(tensor.device, device)
        return tensor.to(device, non_blocking=True) if reaches else _to_gpu(_to_host(tensor), device)
    if tensor.is_cuda and device.type == "cpu":
        return _to_host(tensor)
    return _to_gpu(tensor, device) if device.type == "cuda" and tensor.device.type == "cpu" else tensor.to(device)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """In pinned memory, once it is there."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))
    arrived.synchronize()
    return host


def _to_gpu(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From pinned memory, which torch keeps until the copy has been made."""
    return tensor.pin_memory().to(device, non_blocking=True)
