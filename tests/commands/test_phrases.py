from __future__ import annotations

import pytest

from commands.phrases import (
    device_words,
    duration,
    layer_words,
    layers,
    memory,
    plural,
    round_trip,
    system_words,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("used", "limit", "words"),
    [
        (0, 0, "0/0 B"),
        (0, 6 * GIB, "0/6.0 GiB"),
        (int(9.7 * GIB), 16 * GIB, "9.7/16 GiB"),
        (11 * 2**20, 16 * 2**20, "11/16 MiB"),
        (999, 1000, "999/1000 B"),
    ],
)
def test_memory_has_the_limits_unit(used: int, limit: int, words: str) -> None:
    assert memory(used, limit) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (12, "12 s"), (60, "1 min 0 s"), (185, "3 min 5 s"), (7200, "2 h"), (8075, "2 h 14 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_duration_of_days() -> None:
    assert duration(4 * 86400 + 7200 + 5) == "4 d 2 h"


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "-"), (0.0004, "0.4 ms"), (0.00994, "9.9 ms"), (0.0154, "15 ms"), (1.5, "1500 ms")]
)
def test_round_trip(seconds: float | None, words: str) -> None:
    assert round_trip(seconds, "-") == words


def test_layers_are_named_by_first_and_last() -> None:
    assert layers((0, 40), "-") == "0-39"
    assert layers((7, 8), "-") == "7"
    assert layers(None, "-") == layers((3, 3), "-") == "-"
    assert layer_words((0, 40), 5, "-") == "0-39 (40 layers), 5 layer-tokens computed"
    assert layer_words(None, 0, "-") == "none, 0 layer-tokens computed"


def test_plural() -> None:
    assert (plural(1, "node"), plural(0, "node"), plural(2, "node")) == ("1 node", "0 nodes", "2 nodes")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "Intel Core i5-8250U"),
        ("AMD EPYC", "AMD EPYC"),
        ("", "cuda:0"),
        ("CPU", "cuda:0"),
    ],
)
def test_device_names_lose_their_trade_words(name: str, words: str) -> None:
    assert device_words("cuda:0", name) == words


def test_system_names() -> None:
    assert [system_words(s) for s in ("Linux 6.8", "Darwin 24.1", "Windows 11", "")] == [
        "Linux",
        "macOS",
        "Windows",
        "",
    ]
