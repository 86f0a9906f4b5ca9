"""What parts of a model cost in bytes: layers with their KV, the ends, workspace; and the dtype that decides it.

Pure. Never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transport.types import DTYPE_BYTES, LayerRange, WeightFormat
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import NodeCapacity, PlanSettings

AUTO: Final = "auto"
COMPUTE_DTYPES: Final = ("float32", "bfloat16", "float16")
SMALL_MODEL_BYTES: Final = 2 << 30
"""Up to this size in float32, a plan with a CPU computes in float32: exact, and CPUs are fastest in it."""


def choose_dtype(
    requested: str, facts: ModelFacts, nodes: Sequence[NodeCapacity], quantize: WeightFormat = "none"
) -> str:
    """The dtype of weights, KV and activations, one for the whole plan.

    Anything but "auto" is taken as asked. "auto": float32 when some node is a CPU and the whole model takes at most
    2 GiB in float32; else the checkpoint's dtype, or bfloat16 where that is none to compute in (float8, float64).
    float16 becomes bfloat16 as soon as some node is a CPU: CPU kernels for float16 are slow and overflow early. Weights
    that are taken over as stored, in groups, are for float32 only where it is asked for: no fast kernel computes in it.
    """
    if requested != AUTO:
        return requested
    has_cpu = any(node.device.kind == "cpu" for node in nodes)
    whole = LayerRange(0, facts.layer_count)
    takes_over = quantize != "none" and facts.is_stored_packed
    if (
        has_cpu
        and not takes_over
        and facts.weights_bytes(whole, "float32") + facts.ends_bytes("float32") <= SMALL_MODEL_BYTES
    ):
        return "float32"
    declared = facts.checkpoint_dtype if facts.checkpoint_dtype in COMPUTE_DTYPES else "bfloat16"
    return "bfloat16" if has_cpu and declared == "float16" else declared


@dataclass(frozen=True, slots=True)
class Costs:
    """A model's price list at one dtype. `block_bytes[i]`, `state_bytes[i]`: one KV block and one state of layer i.

    `most_slots` is 0 for a model without recurrent state, `least_slots` then too.
    """

    ends_bytes: int
    workspace_bytes: int
    weights_bytes: tuple[int, ...]
    block_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    least_blocks: int
    most_blocks: int
    most_slots: int

    @property
    def least_slots(self) -> int:
        return min(1, self.most_slots)

    def stage_kv_bytes(self, layers: LayerRange, block_count: int) -> int:
        return sum(self.block_bytes[layers.start : layers.end]) * block_count

    def stage_state_bytes(self, layers: LayerRange, slots: int) -> int:
        return sum(self.state_bytes[layers.start : layers.end]) * slots

    def stage_weights_bytes(self, layers: LayerRange) -> int:
        return sum(self.weights_bytes[layers.start : layers.end])

    def layer_bytes(self) -> tuple[int, ...]:
        """Each layer's weights and its cache for one context: the least that holding it takes, workspace aside."""
        parts = zip(self.weights_bytes, self.block_bytes, self.state_bytes, strict=True)
        return tuple(w + block * self.least_blocks + state * self.least_slots for w, block, state in parts)


def price(facts: ModelFacts, settings: PlanSettings, dtype: str) -> Costs:
    """The price list. The ends' bytes hold their own workspace: they are loaded beside a stage, not within it."""
    tokens = context_tokens(facts, settings)
    context_blocks = _blocks(tokens, settings.block_tokens)
    return Costs(
        ends_bytes=facts.ends_bytes(dtype) + facts.workspace_bytes(settings.max_step_tokens),
        workspace_bytes=stage_workspace_bytes(facts, dtype, settings.quantize, tokens, settings.max_step_tokens),
        weights_bytes=facts.layer_bytes(dtype, settings.quantize),
        block_bytes=tuple(count * settings.block_tokens * DTYPE_BYTES[dtype] for count in facts.kv_elements_per_token),
        state_bytes=tuple(facts.state_bytes(LayerRange(i, i + 1), 1) for i in range(facts.layer_count)),
        least_blocks=context_blocks + 1,
        most_blocks=context_blocks * settings.max_sequences + 1,
        most_slots=settings.max_sequences if facts.has_state else 0,
    )


def stage_workspace_bytes(
    facts: ModelFacts, dtype: str, quantize: WeightFormat, context_tokens: int, max_step_tokens: int
) -> int:
    """What a stage uses beside weights and KV, the same for every stage: one step's intermediate values, or a copy
    of one whole context's KV in the layer where that is largest (made when its blocks lie scattered), or before any
    step a layer's weights on their way to being quantised."""
    gather_bytes = max(facts.kv_elements_per_token, default=0) * context_tokens * DTYPE_BYTES[dtype]
    return max(facts.workspace_bytes(max_step_tokens), gather_bytes, facts.quantising_bytes(dtype, quantize))


def context_tokens(facts: ModelFacts, settings: PlanSettings) -> int:
    """The context of the plan: as asked, but never longer than the checkpoint declares."""
    return min(settings.context_tokens, facts.context_tokens)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
