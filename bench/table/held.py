"""What both sides hold a model's weights in, in bytes: the planner's count, and the tensors of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

from transport.messages import ModelRef
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine.torch_engine import TorchEngine


def ours_bytes(checkpoint: Path, quantize: WeightFormat, dtype: str = "bfloat16") -> int:
    """As planned, which is what the allocator enforces: both ends in what a plan in `quantize` holds them in."""
    engine = TorchEngine("cpu", limit_bytes=1 << 30)
    facts = engine.model_facts(checkpoint, ModelRef("bench", "folder", str(checkpoint), engine.digest(checkpoint)))
    return facts.weights_bytes(LayerRange(0, facts.layer_count), dtype, quantize) + facts.ends_bytes(dtype, quantize)


def theirs_bytes(file: Path) -> int:
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)
