from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import quant


def test_every_format_is_measured_beside_bfloat16_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quant, "SHAPES", ((96, 64), (64, 96)))
    monkeypatch.setattr(quant, "ROWS", (1, 16))
    threads = torch.get_num_threads()
    assert quant.main(["--repetitions", "2", "--threads", str(threads), "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "quant.json").read_text())
    assert [row["name"] for row in data["rows"]] == ["int8, 1 row", "int8, 16 rows", "int4, 1 row", "int4, 16 rows"]
    assert all(len(row["measured"]["values"]) == 2 and row["ratio"] > 0 for row in data["rows"])
    assert "| int4, 16 rows |" in (tmp_path / "quant.md").read_text()
