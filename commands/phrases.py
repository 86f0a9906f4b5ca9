"""Figures as short words for people: sizes, times, layer ranges. Pure; imports nothing of the house."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def _scale(size_bytes: int) -> tuple[str, int]:
    return next(((unit, factor) for unit, factor in _UNITS if size_bytes >= factor), ("B", 1))


def _figure(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"


def memory(used_bytes: int, limit_bytes: int) -> str:
    """ "9.7/16 GiB": both in the limit's unit."""
    unit, factor = _scale(limit_bytes)
    return f"{_figure(used_bytes / factor)}/{_figure(limit_bytes / factor)} {unit}"


def size(size_bytes: int) -> str:
    """ "787 MiB"."""
    unit, factor = _scale(size_bytes)
    return f"{_figure(size_bytes / factor)} {unit}"


def speed(bytes_per_s: int) -> str:
    """ "98 Mbit/s", "2.5 Gbit/s"."""
    megabits = bytes_per_s * 8 / 1e6
    return f"{_figure(megabits / 1000)} Gbit/s" if megabits >= 1000 else f"{_figure(megabits)} Mbit/s"


def duration(seconds: float) -> str:
    """ "2 h 14 min", "3 min 5 s", "12 s", "4 d 2 h"."""
    whole = max(0, int(seconds))
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count or unit == "s")


def round_trip(seconds: float | None, dash: str) -> str:
    """ "0.4 ms"; a dash where there is none (the head itself)."""
    if seconds is None:
        return dash
    return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"


def layers(held: tuple[int, int] | None, dash: str) -> str:
    """The first and the last layer held, both included: "0–39"."""
    if held is None or held[1] <= held[0]:
        return dash
    return f"{held[0]}{dash}{held[1] - 1}" if held[1] - held[0] > 1 else str(held[0])


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def layer_words(held: tuple[int, int] | None, layer_tokens: int, dash: str) -> str:
    """ "0–39 (40 layers), 5120 layer-tokens computed"."""
    done = f"{layer_tokens} layer-tokens computed"
    return f"none, {done}" if held is None else f"{layers(held, dash)} ({plural(held[1] - held[0], 'layer')}), {done}"


_TRADE_WORDS: Final = re.compile(r"\((?:R|TM|C)\)|\b(?:NVIDIA|GeForce|Processor|CPU|with Radeon Graphics)\b|@.*$")


def device_words(device: str, device_name: str) -> str:
    """The device's name without what a maker adds to it; "cpu" or "cuda:0" where it has none."""
    return " ".join(_TRADE_WORDS.sub(" ", device_name).split()) or device


def system_words(system: str) -> str:
    """The system's name without its version: "Linux", "Windows", "macOS"."""
    name = system.partition(" ")[0]
    return "macOS" if name == "Darwin" else name
