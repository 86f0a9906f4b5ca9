"""How fast a device is: timed once when its node starts, and by every step that it has executed since.

Both are seconds of the device's own work; what waits in a queue or travels between nodes is no part of them. Never
loops, sockets, planning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import torch

from transport.types import DeviceSpeed

FEW_TOKENS: Final = 8
"""Up to so many tokens a step is one of decoding: it takes what reading the weights takes."""
MANY_TOKENS: Final = 32
"""From so many on, a step is one of prefill."""
REMEMBERED: Final = 33
"""The median of so many steps counts: a step that another program got in the way of does not."""
PROBE_BYTES: Final = {"cpu": 64 << 20}
PROBE_BYTES_ELSEWHERE: Final = 512 << 20
"""More than what a device keeps close by, so that its memory is timed and not its cache."""
_ROUNDS: Final = 5
_CALLS: Final = 32
"""Small operations in a layer, about: norms, projections, rotation, attention, activation."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """A step under way on an accelerator, which runs behind the thread that asked for it."""

    layers: int
    tokens: int
    began: Any
    ended: Any


class Pace:
    """The latest steps of one device. `timing` on its thread; the figures from any."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of: Hashable = None
        self._few: deque[float] = deque(maxlen=REMEMBERED)
        self._many: deque[float] = deque(maxlen=REMEMBERED)
        self._under_way: deque[_Timed] = deque(maxlen=REMEMBERED)

    def begin(self, what: Hashable) -> None:
        """Layers of something else say nothing of these."""
        if what != self._of:
            self._of = what
            for timed in (self._few, self._many, self._under_way):
                timed.clear()

    @property
    def layer_s(self) -> float:
        """What a layer takes in a step of a few tokens; 0 where none was timed."""
        return _median(self._few)

    @property
    def layer_token_s(self) -> float:
        """What a layer takes for each token of a step of many; 0 where none was timed."""
        return _median(self._many)

    @contextmanager
    def timing(self, layers: int, tokens: int) -> Generator[None]:
        """Around a step; one that fails is not counted."""
        if self._device.type == "cuda":
            with self._timing_behind(layers, tokens):
                yield
            return
        began_s = time.perf_counter()
        yield
        if self._device.type == "cpu":  # others are still at work, and tell of it by no event
            self._note(layers, tokens, time.perf_counter() - began_s)

    @contextmanager
    def _timing_behind(self, layers: int, tokens: int) -> Generator[None]:
        self._collect()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self._under_way.append(_Timed(layers, tokens, began, ended))

    def _collect(self) -> None:
        """The steps that are through by now, without waiting for any."""
        while self._under_way and self._under_way[0].ended.query():
            timed = self._under_way.popleft()
            self._note(timed.layers, timed.tokens, timed.began.elapsed_time(timed.ended) / 1000)

    def _note(self, layers: int, tokens: int, took_s: float) -> None:
        if tokens <= FEW_TOKENS:
            self._few.append(took_s / layers)
        elif tokens >= MANY_TOKENS:
            self._many.append(took_s / layers / tokens)


def _median(timed: deque[float]) -> float:
    seconds = tuple(timed)
    return median(seconds) if seconds else 0.0


def probe(device: torch.device, limit_bytes: int) -> DeviceSpeed:
    """Time a device, in a few hundredths of a second; takes at most a quarter of what the node may hold there."""
    size_bytes = min(PROBE_BYTES.get(device.type, PROBE_BYTES_ELSEWHERE), limit_bytes // 4)
    width = 1024
    weight = torch.ones(max(width, size_bytes // (4 * width)), width, device=device)
    row = torch.ones(1, width, device=device)
    small = torch.ones(64, 64, device=device)
    with torch.inference_mode():
        product_s = _least_s(device, lambda: torch.nn.functional.linear(row, weight))
        calls_s = _least_s(device, lambda: [torch.nn.functional.linear(small, small) for _ in range(_CALLS)])
    return DeviceSpeed(calls_s, weight.numel() * weight.itemsize / max(product_s, 1e-9))


def _least_s(device: torch.device, work: Any) -> float:
    """The fastest of some rounds, after one that warms up."""
    return min(_took_s(device, work) for _ in range(1 + _ROUNDS))


def _took_s(device: torch.device, work: Any) -> float:
    began_s = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - began_s
