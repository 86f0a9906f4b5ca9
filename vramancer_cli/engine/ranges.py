"""Which bytes of a checkpoint layers need, told without reading a weight.

The same rules that decide what is loaded decide it here: `weights.owned_tensors`. Must never know who fetches them.
"""

from __future__ import annotations

from pathlib import Path

from transport.messages import Plan
from transport.types import LayerRange
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.stage import checked
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.models.weight_files import ByteRange


def layer_ranges(folder: Path, plan: Plan, layers: LayerRange) -> tuple[ByteRange, ...]:
    """The stored tensors of `layers`, by file and place. `folder` needs config and headers, no weights.

    Raises ModelError, also for another checkpoint than the plan's.
    """
    checkpoint = checked(folder, plan)
    trace = trace_layers(checkpoint)
    model = architecture.build(checkpoint, DTYPES[plan.dtype], ragged=trace.ragged)
    architecture.keep_layers(model, trace.seams, layers)
    owned = [tensor for group in weights.owned_tensors(model, checkpoint).values() for tensor in group]
    owned.sort(key=lambda tensor: (tensor.path, tensor.start))
    return tuple(ByteRange(tensor.path, tensor.start, tensor.size_bytes) for tensor in owned if tensor.size_bytes)
