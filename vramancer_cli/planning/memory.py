"""What parts of a model cost in bytes: layers with their KV, the ends, workspace; and the dtype that decides it.

Pure. Never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transport.types import CacheFormat, LayerRange, WeightFormat
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import DeviceCapacity, PlanSettings

AUTO: Final = "auto"
COMPUTE_DTYPES: Final = ("float32", "bfloat16", "float16")
SMALL_MODEL_BYTES: Final = 2 << 30
"""Up to this size in float32, a plan with a CPU computes in float32: exact, and CPUs are fastest in it."""


def choose_dtype(
    requested: str, facts: ModelFacts, devices: Sequence[DeviceCapacity], quantize: WeightFormat = "none"
) -> str:
    """The dtype of weights, KV and activations, one for the whole plan.

    Anything but "auto" is taken as asked. "auto": float32 when some device is a CPU and the whole model takes at most
    2 GiB in float32; else the checkpoint's dtype, or bfloat16 where that is none to compute in (float8, float64).
    float16 becomes bfloat16 as soon as some device is a CPU: CPU kernels for float16 are slow and overflow early.
    Weights that are taken over as stored, in groups, are for float32 only where it is asked for: no fast kernel
    computes in it.
    """
    if requested != AUTO:
        return requested
    has_cpu = any(device.device.kind == "cpu" for device in devices)
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
class Pieces:
    """What one cache group is made of, blocks or states: what one takes of each layer, the fewest that a plan can do
    with, and the most that it can use. `window_tokens`: the group's window, 0 for none."""

    layer_bytes: tuple[int, ...]
    least: int
    most: int
    window_tokens: int = 0

    def stage_bytes(self, layers: LayerRange, count: int) -> int:
        return sum(self.layer_bytes[layers.start : layers.end]) * count


@dataclass(frozen=True, slots=True)
class Costs:
    """A model's price list at one dtype. `blocks`: of cache group 0; `windows`: of a group for each length of window
    that is worth one; `states`: none are needed of a model without recurrent state."""

    ends_bytes: int
    workspace_bytes: int
    weights_bytes: tuple[int, ...]
    blocks: Pieces
    windows: tuple[Pieces, ...]
    states: Pieces

    @property
    def groups(self) -> tuple[Pieces, ...]:
        return self.blocks, *self.windows, self.states

    def stage_cache_bytes(self, layers: LayerRange, counts: Sequence[int]) -> int:
        """With as many pieces of each group."""
        return sum(group.stage_bytes(layers, count) for group, count in zip(self.groups, counts, strict=True))

    def stage_weights_bytes(self, layers: LayerRange) -> int:
        return sum(self.weights_bytes[layers.start : layers.end])

    def layer_bytes(self) -> tuple[int, ...]:
        """Each layer's weights and its cache for one context: the least that holding it takes, workspace aside."""
        caches = zip(*([size * group.least for size in group.layer_bytes] for group in self.groups), strict=True)
        return tuple(weights + sum(cache) for weights, cache in zip(self.weights_bytes, caches, strict=True))


def price(facts: ModelFacts, settings: PlanSettings, dtype: str) -> Costs:
    """The price list. The ends' bytes hold their own workspace: they are loaded beside a stage, not within it."""
    tokens = context_tokens(facts, settings)
    windows = _windows(facts, settings, dtype)
    nothing = {window.window_tokens: 0 for window in windows}
    one_each = [LayerRange(index, index + 1) for index in range(facts.layer_count)]
    context_blocks = _blocks(tokens, settings.block_tokens)
    blocks = Pieces(
        tuple(facts.kv_bytes(layer, dtype, settings.block_tokens, nothing, settings.kv_cache) for layer in one_each),
        least=context_blocks + 1,
        most=context_blocks * settings.max_sequences + 1,
    )
    most_states = settings.max_sequences if facts.has_state else 0
    return Costs(
        ends_bytes=facts.ends_bytes(dtype, settings.quantize)
        + facts.ends_workspace_bytes(dtype, settings.quantize, settings.max_step_tokens),
        workspace_bytes=stage_workspace_bytes(
            facts, dtype, settings.quantize, tokens, settings.max_step_tokens, settings.kv_cache
        ),
        weights_bytes=facts.layer_bytes(dtype, settings.quantize),
        blocks=blocks,
        windows=windows,
        states=Pieces(tuple(facts.state_bytes(layer, 1) for layer in one_each), min(1, most_states), most_states),
    )


def _windows(facts: ModelFacts, settings: PlanSettings, dtype: str) -> tuple[Pieces, ...]:
    """A cache group for each length of window of which a sequence holds less than a whole context.

    One block more than a sequence holds, for the next one that is admitted beside it: as many times as sequences run.
    """
    context_blocks = _blocks(context_tokens(facts, settings), settings.block_tokens)
    one_each = [LayerRange(index, index + 1) for index in range(facts.layer_count)]
    found: list[Pieces] = []
    for part in facts.windows:
        held = most_held_blocks(part.window_tokens, settings.max_step_tokens, settings.block_tokens)
        if held < context_blocks:
            one_block = {part.window_tokens: settings.block_tokens}
            sizes = tuple(facts.kv_bytes(layer, dtype, 0, one_block, settings.kv_cache) for layer in one_each)
            found.append(Pieces(sizes, held + 1, (held + 1) * settings.max_sequences, part.window_tokens))
    return tuple(found)


def stage_workspace_bytes(
    facts: ModelFacts,
    dtype: str,
    quantize: WeightFormat,
    context_tokens: int,
    max_step_tokens: int,
    kv_cache: CacheFormat = "plain",
) -> int:
    """What a stage uses beside weights and KV, the same for every stage: one step's intermediate values, or a copy
    of one whole context's KV in the layer where that is largest (made when its blocks lie scattered, or to turn int8
    back), or before any step a layer's weights on their way to being quantised."""
    gather_bytes = facts.gather_bytes(dtype, context_tokens, kv_cache)
    return max(facts.workspace_bytes(max_step_tokens), gather_bytes, facts.quantising_bytes(dtype, quantize))


def context_tokens(facts: ModelFacts, settings: PlanSettings) -> int:
    """The context of the plan: as asked, but never longer than the checkpoint declares."""
    return min(settings.context_tokens, facts.context_tokens)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
