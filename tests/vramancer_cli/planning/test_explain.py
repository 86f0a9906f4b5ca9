"""Sizes and sentences for people."""

from __future__ import annotations

import pytest

from tests.helpers.planning_values import HEAD, MIB, capacity, device
from transport.messages import StagePlan
from transport.types import LayerRange
from vramancer_cli.planning import explain


@pytest.mark.parametrize(
    ("count", "text", "text_up"),
    [
        (0, "0.0 MiB", "0.0 MiB"),
        (1, "0.0 MiB", "0.1 MiB"),
        (21 * MIB, "21.0 MiB", "21.0 MiB"),
        (21 * MIB + 1, "21.0 MiB", "21.1 MiB"),
        (1536 * MIB, "1.5 GiB", "1.5 GiB"),
    ],
)
def test_sizes(count: int, text: str, text_up: str) -> None:
    assert explain.format_bytes(count) == text
    assert explain.format_bytes(count, up=True) == text_up


def test_layers() -> None:
    assert explain.format_layers(LayerRange(0, 4)) == "layers 0-3"
    assert explain.format_layers(LayerRange(7, 8)) == "layer 7"


def test_the_sentence_of_a_stage() -> None:
    stage = StagePlan(HEAD, device(), LayerRange(0, 4), 10 * MIB, 5 * MIB, MIB)
    node = capacity(0, 24 * MIB)
    assert explain.stage_reason(stage, node, ends_bytes=None) == "layers 0-3: 16.0 MiB of its 24.0 MiB limit"
    expected = "layers 0-3: 21.0 MiB of its 24.0 MiB limit; also holds both ends (5.0 MiB)"
    assert explain.stage_reason(stage, node, ends_bytes=5 * MIB) == expected


def test_the_sentences_of_a_node_without_layers() -> None:
    node = capacity(1, 3 * MIB)
    assert explain.empty_reason(node, 2 * MIB, 5 * MIB, ends_bytes=None) == (
        "no layers: its 3.0 MiB limit leaves 2.0 MiB for layers, and the smallest takes 5.0 MiB"
    )
    assert "leaves 0.0 MiB" in explain.empty_reason(node, -5, 5 * MIB, ends_bytes=None)
    assert explain.empty_reason(node, 6 * MIB, 5 * MIB, ends_bytes=MIB) == (
        "both ends (1.0 MiB) and no layers: its share of the memory is less than a layer"
    )


def test_the_sentence_when_nothing_fits() -> None:
    sentence = explain.misfit("tiny", 40 * MIB, 2048, 30 * MIB, 10 * MIB + 1, "attic")
    assert sentence == (
        "'tiny' takes 40.0 MiB with 2048 tokens of context, and the nodes may hold 30.0 MiB: "
        "10.1 MiB more would do on 'attic'."
    )
