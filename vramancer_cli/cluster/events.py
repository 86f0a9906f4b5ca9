"""What happens to a cluster, as frozen values: heard on links, done by the coordinator, or chosen by a person.

Tokens and steps are not cluster events. Times `at` are seconds of the caller's clock. Never sockets, clocks, torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.messages import NodeLoad, Plan
from transport.types import NodeFacts, NodeId
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import PlanSettings


@dataclass(frozen=True, slots=True)
class ModelChosen:
    """A person chose what to serve."""

    facts: ModelFacts
    settings: PlanSettings


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node proved who it is. One that was here before starts afresh; what it still holds, nobody here knows.

    `slept_s`: it stood still for so long before, by its own clock; 0: it did not.
    """

    facts: NodeFacts
    at: float
    is_head: bool
    slept_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeHeard:
    """A node answered. `round_trip_s` None: not measured this time."""

    node: NodeId
    at: float
    load: NodeLoad
    round_trip_s: float | None


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node's link ended, or it fell silent. The head is never lost to itself.

    `silent`: nothing was heard of it, and its link did not end. `failed`: its stage could not go on, by its own word. A
    node lost while it loads has failed in any case.
    """

    node: NodeId
    reason: str
    at: float
    failed: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class NodeRested:
    """The time is over for which plans were made without a node whose stages kept failing."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class NodeQuarantined:
    """A node sent what the protocol does not allow; whoever says so has closed its link. Never the head."""

    node: NodeId
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class QuarantineEnded:
    """The node may be planned with again, once it is there."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """A node is to hand its layers over, and gets no others until it joins again."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to MakePlan."""

    plan: Plan
    at: float


@dataclass(frozen=True, slots=True)
class PlanFailed:
    """The other answer to MakePlan. `missing_bytes` 0: more memory would not help."""

    reason: str
    missing_bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class Assigned:
    """A node was told to load its stage; from now on it counts as holding `epoch`."""

    node: NodeId
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class StageFetching:
    """A node lacks weights of its stage, and has so many of their bytes from the head by now."""

    node: NodeId
    epoch: int
    fetched_bytes: int
    total_bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class StageLoading:
    """A node's stage is partly loaded."""

    node: NodeId
    epoch: int
    loaded_bytes: int
    total_bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class StageBecameReady:
    """A node's stage is loaded. `direct`: its output goes straight to the next stage, not through the head."""

    node: NodeId
    epoch: int
    direct: bool
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class StageRefused:
    """A node cannot hold what it was assigned: needed, and present for it, on the device that is at `position` of its
    own.
    """

    node: NodeId
    epoch: int
    needed_bytes: int
    present_bytes: int
    reason: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class WeightsAhead:
    """A node has so many bytes on its disk of layers that it would get if another one were lost."""

    node: NodeId
    epoch: int
    there_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Released:
    """A node was told to unload `epoch` and everything before."""

    node: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class ServingStarted:
    """Requests are taken on the plan of `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ServingBroke:
    """Something failed on the head itself while it served `epoch`: the plan cannot go on.

    `in_step`: at what it was given to compute, as a worker's stage may.
    """

    epoch: int
    reason: str
    in_step: bool = False


@dataclass(frozen=True, slots=True)
class ServingStopped:
    """Nothing is computed any more on the plan of `epoch`. An epoch never serves twice.

    `kept`: its requests wait for the next plan; `node`: whose loss it was, if it was one's.
    """

    epoch: int
    reason: str
    at: float = 0.0
    kept: bool = False
    node: NodeId | None = None


@dataclass(frozen=True, slots=True)
class RequestsEnded:
    """The requests that waited for the next plan wait no longer."""


@dataclass(frozen=True, slots=True)
class BusyChanged:
    """How many requests run and wait; `running_tokens`: of all sequences that run."""

    running: int
    waiting: int
    running_tokens: int = 0


Event = (
    ModelChosen
    | NodeJoined
    | NodeHeard
    | NodeLost
    | NodeRested
    | NodeQuarantined
    | QuarantineEnded
    | NodeDraining
    | Planned
    | PlanFailed
    | Assigned
    | StageFetching
    | StageLoading
    | StageBecameReady
    | StageRefused
    | WeightsAhead
    | Released
    | ServingStarted
    | ServingBroke
    | ServingStopped
    | RequestsEnded
    | BusyChanged
)
