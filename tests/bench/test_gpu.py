from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.reports import Measured


def test_a_share_of_a_ceiling_is_held_against_its_goal(tmp_path: Path):
    found = Measured("tokens/s", (70.0, 75.0, 80.0))
    rows = [gpu.against("decode", found, 100.0, 0.7), gpu.against("prefill", found, 200.0, 0.6)]
    rows.append(gpu.beside("two", Measured("tokens/s", (60.0,)), found))
    assert [(row.ratio, row.reached) for row in rows] == [(0.75, True), (0.375, False), (0.8, True)]
    text = gpu.write(rows, {"gpu": "one"}, tmp_path)
    assert "| decode | 75 tokens/s (70 to 80, 3 times) | 100 tokens/s | 0.75 x | ≥ 0.7 x | reached |" in text
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 3


def test_without_a_gpu_it_says_so_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert capsys.readouterr().err == "This machine has no CUDA GPU that torch can use: nothing was measured.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ceilings_are_what_the_gpu_can_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_COPY_BYTES", 1 << 28)
    monkeypatch.setattr(gpu, "_SIDE", 2048)
    assert gpu.bandwidth() > 1e10 and gpu.arithmetic() > 1e11
