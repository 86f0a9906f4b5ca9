"""Clusters to draw: fixed ones, as a board shows them."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console, RenderableType

from vramancer_cli.cluster.status import ClusterStatus, NodeStatus

GIB = 2**30

DESK = NodeStatus(
    id="d" * 32,
    name="desk",
    role="head",
    os="Linux 6.8",
    device="cuda:0",
    device_name="NVIDIA GeForce RTX 4090",
    memory_used_bytes=22 * GIB,
    memory_limit_bytes=24 * GIB,
    state="ready",
    round_trip_s=None,
    layers=(0, 40),
    layer_tokens=204800,
    loaded_fraction=1.0,
    direct=True,
    why="layers 0-39: half of the free memory is here",
    address="192.168.1.20:5001",
)
KITCHEN = replace(
    DESK,
    id="a" * 32,
    name="kitchen-macbook",
    role="worker",
    os="Darwin 24.1",
    device="mps",
    device_name="Apple M3 Pro",
    memory_used_bytes=int(9.7 * GIB),
    memory_limit_bytes=16 * GIB,
    round_trip_s=0.0021,
    layers=(40, 64),
    why="layers 40-63: 9.7 GiB of its 16 GiB limit",
    address="192.168.1.21:5001",
)
ATTIC = replace(
    KITCHEN,
    id="b" * 32,
    name="attic",
    os="Windows 11",
    device="cuda:0",
    device_name="NVIDIA GeForce GTX 1080",
    memory_used_bytes=3 * GIB,
    memory_limit_bytes=8 * GIB,
    state="loading",
    loaded_fraction=0.5,
    round_trip_s=0.0154,
    layers=(64, 80),
    direct=False,
    why="layers 64-79: all that fits",
)
SPARE = replace(
    KITCHEN,
    id="c" * 32,
    name="old-laptop",
    os="Linux 5.15",
    device="cpu",
    device_name="Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz",
    memory_used_bytes=0,
    memory_limit_bytes=6 * GIB,
    state="spare",
    layers=None,
    why="not needed: the model fits without it",
)
CLUSTER = ClusterStatus(
    cluster="otter-cove",
    cluster_id="0" * 64,
    version="0.1.0",
    state="ready",
    reason="",
    model="meta-llama/Llama-3.3-70B-Instruct",
    layer_count=80,
    dtype="bfloat16",
    context_tokens=8192,
    epoch=3,
    uptime_s=8075.0,
    running=2,
    waiting=1,
    tokens_per_s=23.42,
    api_url="http://127.0.0.1:5000",
    nodes=(DESK, KITCHEN, ATTIC, SPARE),
)


def drawn(renderable: RenderableType, width: int, *, colour: bool = False, encoding: str = "utf-8") -> list[str]:
    """The lines that a console of `width` writes; without `colour` as into a pipe."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="\n")
    console = Console(
        file=file,
        width=width,
        highlight=False,
        emoji=False,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    console.print(renderable)
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()
