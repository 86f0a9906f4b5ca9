"""Small models, nodes and settings for the tests of planning and cluster, and hypothesis strategies of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from hypothesis import strategies as st

from transport.messages import DeviceLoad, ModelRef, NodeLoad
from transport.types import Address, DeviceFacts, DeviceKind, DeviceSpeed, NodeFacts, NodeId, OfferedDevice, Versions
from vramancer_cli.models.facts import ModelFacts, WindowElements
from vramancer_cli.models.quantisation import Quantisable
from vramancer_cli.planning.facts import DeviceCapacity, PlanSettings

MIB = 1 << 20
VERSIONS = Versions("0.1.0", "2.13.0", "5.23.0")


def node_id(number: int) -> NodeId:
    return f"{number:032x}"


HEAD = node_id(0)


def model_facts(
    layers: tuple[int, ...] = (1000,) * 8,
    *,
    ends: int = 2000,
    kv: tuple[int, ...] | None = None,
    state: tuple[int, ...] = (),
    windows: tuple[WindowElements, ...] = (),
    workspace: int = 1,
    context_tokens: int = 4096,
    checkpoint_dtype: str = "bfloat16",
    name: str = "tiny",
    quantisable: tuple[tuple[Quantisable, ...], ...] = (),
) -> ModelFacts:
    """Figures in elements, as ModelFacts has them."""
    return ModelFacts(
        ref=ModelRef(name, "folder", f"models/{name}", f"digest of {name}"),
        family="llama",
        hidden_size=16,
        vocab_size=64,
        context_tokens=context_tokens,
        checkpoint_dtype=checkpoint_dtype,
        layer_parameters=layers,
        ends_parameters=ends,
        kv_elements_per_token=(2,) * len(layers) if kv is None else kv,
        workspace_elements_per_token=workspace,
        layer_quantisable=quantisable,
        state_elements_per_sequence=state,
        windows=windows,
    )


def device(kind: DeviceKind = "cpu", index: int = 0) -> DeviceFacts:
    return DeviceFacts(kind, index, f"a {kind}", 8 << 30, 4 << 30)


def capacity(number: int, limit_bytes: int, kind: DeviceKind = "cpu", position: int = 0) -> DeviceCapacity:
    name = f"node-{number} {kind}:{position}" if position else f"node-{number}"
    return DeviceCapacity(node_id(number), name, device(kind, position), limit_bytes, position)


def timed(number: int, layer_ms: float, *, limit_bytes: int = 100_000, round_trip_ms: float = 0.0) -> DeviceCapacity:
    """A device on which a layer takes so long, whatever its size."""
    speed = DeviceSpeed(layer_ms / 1000, 1e18)
    return replace(capacity(number, limit_bytes), speed=speed, round_trip_s=round_trip_ms / 1000)


def node_facts(number: int, *limits_bytes: int, versions: Versions = VERSIONS) -> NodeFacts:
    """A node with a device for each limit."""
    addresses = (Address("127.0.0.1", 5000 + number),)
    devices = tuple(OfferedDevice(device(index=index), limit) for index, limit in enumerate(limits_bytes))
    return NodeFacts(node_id(number), f"node-{number}", "linux", devices, addresses, versions)


def node_load(memory_used_bytes: int, layer_tokens: int, steps: int) -> NodeLoad:
    """Of a node with one device."""
    return NodeLoad((DeviceLoad(memory_used_bytes, layer_tokens),), steps)


def settings(context_tokens: int = 32, dtype: str = "float32", max_sequences: int = 4) -> PlanSettings:
    return PlanSettings(dtype, context_tokens, block_tokens=16, max_step_tokens=16, max_sequences=max_sequences)


@st.composite
def models(
    draw: st.DrawFn, *, equal_layers: bool = False, stateful: bool = False, windowed: bool = False
) -> ModelFacts:
    """`stateful`, `windowed`: always with recurrent state, always with a window; else now and then."""
    count = draw(st.integers(1, 9))
    size = st.integers(1, 400)
    kv = st.integers(0, 6)
    layers = (draw(size),) * count if equal_layers else tuple(draw(st.lists(size, min_size=count, max_size=count)))
    per_token = (draw(kv),) * count if equal_layers else tuple(draw(st.lists(kv, min_size=count, max_size=count)))
    workspace = draw(st.integers(0, 3))
    states = (draw(st.integers(1, 300)),) * count
    state = states if stateful else draw(st.sampled_from(((), (0,) * count, states)))
    behind = tuple(elements * draw(st.integers(0, 1)) for elements in per_token)
    with_window = windowed or (not equal_layers and draw(st.booleans()))
    windows = (WindowElements(draw(st.integers(1, 30)), behind),) if with_window else ()
    ends = draw(st.integers(0, 500))
    return model_facts(layers, ends=ends, kv=per_token, state=state, windows=windows, workspace=workspace)


@st.composite
def capacities(draw: st.DrawFn, ample: bool = False) -> tuple[DeviceCapacity, ...]:
    """1 to 5 devices of as many nodes or fewer; node 0 is the head. Limits often collide, so that the order by node id
    matters.

    `ample`: any one of them could hold any of `models()`.
    """
    few, many = (40_000, 200_000) if ample else (0, 16_000)
    limit = st.one_of(st.integers(few, many), st.sampled_from((few + 2000, few + 4000, few + 8000)))
    limits = draw(st.lists(limit, min_size=1, max_size=5))
    more = draw(st.lists(st.integers(0, 1), min_size=len(limits) - 1, max_size=len(limits) - 1))
    owners = list(accumulate(more, initial=0))
    return tuple(
        capacity(number, limit_bytes, position=index - owners.index(number))
        for index, (number, limit_bytes) in enumerate(zip(owners, limits, strict=True))
    )
