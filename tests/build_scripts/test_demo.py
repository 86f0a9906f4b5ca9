"""`make demo ONCE=1`, as `make` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from build_scripts import demo


def test_three_nodes_answer_one_question_and_nothing_stays_behind() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "build_scripts.demo", "--once", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("head", "worker-1", "worker-2"):
        assert re.search(rf"{name}: [1-9]\d* \(layer, token\) pairs", run.stdout)
    left = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "vramancer-demo-" not in left


@pytest.mark.parametrize(
    ("counts", "passed"),
    [({"a": 30, "b": 50}, True), ({"a": 80, "b": 0}, False), ({"a": 30, "b": 49}, False), ({"a": 30, "b": 51}, False)],
)
def test_the_proof_needs_every_node_and_the_exact_sum(counts: dict[str, int], passed: bool) -> None:
    nodes = [SimpleNamespace(name=name, layer_tokens=count + 7) for name, count in counts.items()]
    client = SimpleNamespace(status=lambda fresh: SimpleNamespace(nodes=nodes, layer_count=8))
    cluster: Any = SimpleNamespace(client=client)
    assert demo._proven(Console(quiet=True), cluster, {"a": 7, "b": 7}, tokens=10) is passed
