"""The devices of this machine: which there are, which ones to use, how much of them may be filled.

Must never import transformers.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil
import torch

from transport.types import MAX_DEVICES, DeviceFacts, DeviceKind
from vramancer_cli.errors import VramancerError

CPU_SHARE: Final = 0.70
"""Part of the available RAM that is taken by default: the rest of the machine goes on working."""
GPU_SHARE: Final = 0.90
"""Part of the free GPU memory that is taken by default: the rest is for the driver's own buffers."""


LEFT_SHARE: Final = 0.02
"""Part of a device's memory that is left to whoever needs some at once."""


class DeviceError(VramancerError):
    """The device cannot be used."""

    hint = "Use --device auto, or name one that this machine has."


def list_devices() -> list[DeviceFacts]:
    """Every device, the preferred one first: CUDA or ROCm by free memory, then XPU, MPS, CPU."""
    cuda = sorted((facts(torch.device("cuda", i)) for i in range(_cuda_count())), key=lambda d: -d.free_bytes)
    others = [torch.device(kind, 0) for kind in ("xpu", "mps") if _is_present(kind)]
    return [*cuda, *(facts(device) for device in others), facts(torch.device("cpu"))]


def choose(choice: str) -> DeviceFacts:
    """`auto` (the preferred one), `cuda`, `cuda:N`, `xpu`, `mps`, `cpu` or `cpu:N`.

    `cpu:1` is the same processor as `cpu`, lent once more, with a limit of its own. Raises DeviceError where it is
    absent.
    """
    if choice == "auto":
        return list_devices()[0]
    kind, _, index = choice.partition(":")
    if kind not in ("cuda", "rocm", "xpu", "mps", "cpu") or (index and not index.isdecimal()):
        raise DeviceError(f"'{choice}' is not a device: use auto, cuda:N, mps, xpu or cpu.")
    wanted = "cuda" if kind == "rocm" else kind
    if not _is_present(wanted, int(index or 0)):
        there = ", ".join(str(device) for device in list_devices())
        raise DeviceError(f"This machine has no device '{choice}' that torch can use; it has {there}.")
    if wanted == "cpu":
        return msgspec.structs.replace(facts(torch.device("cpu")), index=int(index or 0))
    return facts(torch.device(wanted, int(index or 0)))


def choose_all(choices: Sequence[str]) -> list[DeviceFacts]:
    """Each of `choices`, in order; `auto` stands for every GPU, and where nothing is chosen by that, for the CPU.

    `cpu` may come several times. Raises DeviceError for one that is absent, or another one twice.
    """
    chosen: list[DeviceFacts] = []
    for choice in choices:
        if choice == "auto":
            chosen += [device for device in list_devices() if device.kind != "cpu"]
        elif choice == "cpu":
            chosen.append(choose(f"cpu:{sum(device.kind == 'cpu' for device in chosen)}"))
        else:
            chosen.append(choose(choice))
    twice = next((device for index, device in enumerate(chosen) if str(device) in map(str, chosen[:index])), None)
    if twice is not None:
        raise DeviceError(f"The device '{twice}' is named twice.", hint="Name each device once.")
    return chosen or [choose("cpu")]


def limits_bytes(devices: Sequence[DeviceFacts], memory: Sequence[int]) -> list[int]:
    """What each device may hold: as given for each, or for all alike, or by default a share of what is free.

    Devices that lie in the machine's RAM share that share. Raises DeviceError for another number of sizes.
    """
    if len(memory) not in (0, 1, len(devices)):
        raise DeviceError(
            f"{len(memory)} sizes are given for {len(devices)} devices.",
            hint="Give --memory once, or once for each --device in the same order.",
        )
    if memory:
        return list(memory) if len(memory) == len(devices) else [memory[0]] * len(devices)
    sharing = sum(_lies_in_ram(device) for device in devices)
    return [default_limit_bytes(device) // (sharing if _lies_in_ram(device) else 1) for device in devices]


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
    share = CPU_SHARE if _lies_in_ram(device) else GPU_SHARE
    return int(device.free_bytes * share)


def holdable_bytes(device: torch.device, used_bytes: int) -> int:
    """What a program that uses so much of the device's memory could hold there, if it left a little; 0 where the driver
    does not answer: the device has gone."""
    try:
        total_bytes, free_bytes = _memory(device)
    except (RuntimeError, OSError):
        return 0
    return max(0, used_bytes + free_bytes - int(total_bytes * LEFT_SHARE))


def _lies_in_ram(device: DeviceFacts) -> bool:
    return device.kind in ("cpu", "mps")


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
    return index < MAX_DEVICES


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
