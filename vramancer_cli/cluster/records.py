"""What a state is made of: the record of a node, its stage and its trouble, why a plan broke, why there is none.

Values only. Never sockets, clocks, torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from transport.messages import NodeLoad
from transport.types import NodeFacts, NodeId

Candidate = tuple[NodeId, tuple[int, ...]]
"""A node that may be planned with, and the limits in bytes that count for its devices."""


FAILURES: Final = 3
FAILURE_WINDOW_S: Final = 600.0
BACK_OFF_S: Final = 300.0
"""So many failures within the window, and a node is planned without for so long; then it is tried once more."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """When a node's stages failed lately, and why the last one did; `resting_until` while it is planned without."""

    times: tuple[float, ...] = ()
    reason: str = ""
    resting_until: float | None = None

    def after(self, at: float, reason: str) -> Trouble:
        """With one failure more."""
        times = (*(earlier for earlier in self.times if at - earlier < FAILURE_WINDOW_S), at)[-FAILURES:]
        return Trouble(times, reason, at + BACK_OFF_S if len(times) == FAILURES else None)


QUARANTINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A node sent what the protocol does not allow, and is planned without until then."""

    reason: str
    until: float


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a node holds or loads of a plan: all its stages. `loaded_fraction` is 0 to 1; `moved_at`: when it was
    assigned or last got further.

    `fetch_bytes`: of its weights, what it did not have; `fetched_bytes` of them have come. `load_bytes`: what it has to
    read, where all of it is new to the node; 0 where it held some before.
    """

    epoch: int
    status: Literal["loading", "ready", "refused"] = "loading"
    loaded_fraction: float = 0.0
    fetched_bytes: int = 0
    fetch_bytes: int = 0
    moved_at: float = 0.0
    direct: bool = False
    assigned_at: float = 0.0
    load_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node. `limits` are in bytes and its devices' own, or less after one refused; `note`: why it was lost or
    refused.

    `may_hold`: it has joined, and nobody has told it yet to hold or to unload anything. `draining`: it is to hold
    nothing, until it joins again. `quarantine`: joining again does not end it, time does. `best_round_trip_s`: the
    least lately, which is the network's share of it; `load_bytes_per_s`: how fast it loaded its last stage of which it
    held nothing before (both 0: not measured yet). `usual_limits`: what `limits` were before other programs took
    memory, if they did; `differs_since`: what the node says that it can hold is something else (see `shrink`).
    `ahead_bytes`: of the layers that it would get if another were lost, on its disk by now, and in all. `slept_s`: the
    last time that it told of; `asleep`: it has slept before, and has fallen silent again.
    """

    facts: NodeFacts
    is_head: bool
    joined_at: float
    last_heard: float
    limits: tuple[int, ...]
    status: Literal["alive", "lost"] = "alive"
    load: NodeLoad = field(default_factory=lambda: NodeLoad((), 0))
    round_trip_s: float | None = None
    stage: StageRecord | None = None
    note: str = ""
    trouble: Trouble = field(default_factory=Trouble)
    quarantine: Quarantine | None = None
    may_hold: bool = False
    draining: bool = False
    best_round_trip_s: float = 0.0
    load_bytes_per_s: float = 0.0
    ahead_bytes: tuple[int, int] = (0, 0)
    usual_limits: tuple[int, ...] = ()
    differs_since: float | None = None
    slept_s: float = 0.0
    asleep: bool = False

    @property
    def resting(self) -> bool:
        """Whether its stages failed so often that plans are made without it for a while."""
        return self.trouble.resting_until is not None

    @property
    def alive(self) -> bool:
        return self.status == "alive"

    @property
    def direct(self) -> bool:
        """Whether its stage sends straight to the next one."""
        return self.stage is not None and self.stage.direct


BreakKind = Literal["lost", "failed", "error"]
"""A node is gone; a node's stage failed at what it was given; something else, which a move of layers does not cure."""


@dataclass(frozen=True, slots=True)
class PlanBreak:
    """Why the active plan cannot go on; `node` where one node is the cause."""

    reason: str
    node: NodeId | None = None
    kind: BreakKind = "lost"


@dataclass(frozen=True, slots=True)
class Interruption:
    """Requests wait for the next plan: since when, why, and for whose fault, where it is one node's."""

    since: float
    reason: str
    node: NodeId | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no plan, and since when. `missing_bytes` 0: more memory would not help."""

    reason: str
    missing_bytes: int
    since: float = 0.0
