"""A data link as a stage's results take it: what they cross it in, and what is told of that.

Never torch, and never which node comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from transport.contracts import DataSender, TensorBuffer
from transport.messages import Activation, LinkLoad, Plan, Step
from transport.types import ActivationFormat, NodeId
from vramancer_cli.models.activation_format import FEATURES, format_for
from vramancer_cli.runtime.contracts import Engine, Hidden


class Outlet:
    """Of one plan. `relayed`: `node` only hands on what comes, to one that may know less than it does."""

    def __init__(self, plan: Plan, node: NodeId, sender: DataSender, *, relayed: bool = False) -> None:
        self._plan = plan
        self._node = node
        self._sender = sender
        features = () if relayed else sender.hello.features
        self._known: set[ActivationFormat] = {FEATURES[word] for word in features if word in FEATURES}
        self._last: ActivationFormat = "plain"

    def buffers(self, engine: Engine, stage: int, hidden: Hidden) -> tuple[TensorBuffer, ...]:
        """What enters `stage`, ready to cross the link. On the device's thread.

        The pipeline's output is never rounded: tokens are drawn from it, and it is small.
        """
        form: ActivationFormat = "plain"
        if stage < len(self._plan.stages) and self._plan.activations != "plain":
            form = self._last = self._format_for(engine, hidden)
        return engine.to_buffers(hidden, form)

    def _format_for(self, engine: Engine, hidden: Hidden) -> ActivationFormat:
        cost_s = partial(engine.rounding_s, hidden)
        size_bytes = engine.hidden_bytes(hidden)
        speed = self._sender.bytes_per_s
        return format_for(self._plan.activations, self._known, self._plan.dtype, size_bytes, speed, cost_s)

    def send(self, stage: int, step: Step, buffers: Sequence[TensorBuffer]) -> None:
        """From any thread. Raises as DataSender.send."""
        self._sender.send(step.epoch, step.number, Activation(stage=stage, step=step), buffers)

    def load(self) -> LinkLoad:
        return LinkLoad(self._node, self._sender.bytes_per_s, self._last)
