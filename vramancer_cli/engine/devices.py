"""The devices of this machine: which there are, which one to use, how much of it may be filled.

Must never import transformers.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Final

import psutil
import torch

from transport.types import DeviceFacts, DeviceKind
from vramancer_cli.errors import VramancerError

CPU_SHARE: Final = 0.70
"""Part of the available RAM that is taken by default: the rest of the machine goes on working."""
GPU_SHARE: Final = 0.90
"""Part of the free GPU memory that is taken by default: the rest is for the driver's own buffers."""


class DeviceError(VramancerError):
    """The device cannot be used."""

    hint = "Use --device auto, or name one that this machine has."


def list_devices() -> list[DeviceFacts]:
    """Every device, the preferred one first: CUDA or ROCm by free memory, then XPU, MPS, CPU."""
    cuda = sorted((facts(torch.device("cuda", i)) for i in range(_cuda_count())), key=lambda d: -d.free_bytes)
    others = [torch.device(kind, 0) for kind in ("xpu", "mps") if _is_present(kind)]
    return [*cuda, *(facts(device) for device in others), facts(torch.device("cpu"))]


def choose(choice: str) -> torch.device:
    """`auto`, `cuda`, `cuda:N`, `xpu`, `mps` or `cpu` as a torch device. Raises DeviceError where it is absent."""
    if choice == "auto":
        return torch_device(list_devices()[0])
    kind, _, index = choice.partition(":")
    if kind not in ("cuda", "rocm", "xpu", "mps", "cpu") or (index and not index.isdecimal()):
        raise DeviceError(f"'{choice}' is not a device: use auto, cuda:N, mps, xpu or cpu.")
    wanted = "cuda" if kind == "rocm" else kind
    if not _is_present(wanted, int(index or 0)):
        there = ", ".join(str(device) for device in list_devices())
        raise DeviceError(f"This machine has no device '{choice}' that torch can use; it has {there}.")
    return torch.device(wanted) if wanted == "cpu" else torch.device(wanted, int(index or 0))


def torch_device(device: DeviceFacts) -> torch.device:
    """ROCm devices are called `cuda` by torch."""
    if device.kind == "cpu":
        return torch.device("cpu")
    return torch.device("cuda" if device.kind == "rocm" else device.kind, device.index)


def facts(device: torch.device) -> DeviceFacts:
    """What the driver says of `device` now; sizes in bytes."""
    total_bytes, free_bytes = _memory(device)
    return DeviceFacts(_kind(device), device.index or 0, _name(device), total_bytes, free_bytes)


def default_limit_bytes(device: DeviceFacts) -> int:
    """What is used when no --memory is given."""
    share = CPU_SHARE if device.kind in ("cpu", "mps") else GPU_SHARE
    return int(device.free_bytes * share)


def empty_cache(device: torch.device) -> None:
    """Hand freed blocks back: torch's caching allocators' to the driver, the C library's to the system.

    What glibc keeps for later otherwise counts as this program's memory, although nothing is in it.
    """
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _cuda_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _is_present(kind: str, index: int = 0) -> bool:
    if kind == "cuda":
        return index < _cuda_count()
    if kind == "xpu":
        return torch.xpu.is_available() and index < torch.xpu.device_count()
    if kind == "mps":
        return torch.backends.mps.is_available() and index == 0
    return index == 0


def _kind(device: torch.device) -> DeviceKind:
    if device.type == "cuda":
        return "rocm" if torch.version.hip else "cuda"
    kinds: dict[str, DeviceKind] = {"cpu": "cpu", "mps": "mps", "xpu": "xpu"}
    return kinds[device.type]


def _memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes. MPS shares the machine's RAM: no more than the driver recommends, no more than is free."""
    if device.type in ("cuda", "xpu"):
        free_bytes, total_bytes = torch.get_device_module(device).mem_get_info(device)
        return total_bytes, free_bytes
    ram = psutil.virtual_memory()
    if device.type == "mps":
        total_bytes = torch.mps.recommended_max_memory()
        return total_bytes, min(total_bytes, ram.available)
    return ram.total, ram.available


def _name(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return _cpu_name()


def _cpu_name() -> str:
    """The processor's own name; on Linux only the kernel tells it."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
