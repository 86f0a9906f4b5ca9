from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkpoints import make_checkpoint
from transport.messages import ModelRef, Plan, StagePlan
from transport.types import DeviceFacts, LayerRange
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.ranges import layer_ranges
from vramancer_cli.engine.shard import Shard
from vramancer_cli.errors import ModelError

CPU = DeviceFacts("cpu", 0, "", 0, 0)


def plan_of(folder: Path, layers: LayerRange) -> Plan:
    ref = ModelRef("m", "folder", str(folder), open_checkpoint(folder).digest)
    return Plan(1, ref, "float32", 64, 16, 4, 16, "h" * 32, 0, (StagePlan("w" * 32, CPU, layers, 0, 0, 0),))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
def test_the_ranges_are_the_bytes_of_the_layers_in_file_order(tmp_path: Path, family: str, shard_size: str) -> None:
    """Of a family whose experts are fused on load, too: there several stored tensors become one."""
    folder = make_checkpoint(tmp_path / "model", family, shard_size=shard_size, num_hidden_layers=4)
    plan = plan_of(folder, LayerRange(1, 3))
    ranges = layer_ranges(folder, plan, LayerRange(1, 3))
    stored = open_checkpoint(folder).tensors
    owned = {t for name, t in stored.items() if ".layers.1." in name or ".layers.2." in name}
    assert {(r.path, r.start, r.size_bytes) for r in ranges} == {(t.path, t.start, t.size_bytes) for t in owned}
    assert [(r.path, r.start) for r in ranges] == sorted((r.path, r.start) for r in ranges)
    shard = Shard(open_checkpoint(folder), LayerRange(1, 3), next(iter(owned)).dtype)
    assert sum(r.size_bytes for r in ranges) == shard.weights_bytes


def test_another_model_than_the_plans_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    plan = plan_of(folder, LayerRange(0, 2))
    other = replace_ref(plan)
    with pytest.raises(ModelError, match="another version"):
        layer_ranges(folder, other, LayerRange(0, 2))


def replace_ref(plan: Plan) -> Plan:
    import msgspec

    return msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, digest="ab" * 32))
