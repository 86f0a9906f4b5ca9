"""Every message of the wire, and the values that ride in them: `Step`, `Plan`, `NodeFacts`.

Upper rooms import `Step` and `Plan` from here, so that the thing scheduled and the thing sent are one frozen
value. No behaviour beyond small derived properties; never sockets, clocks or torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

import msgspec

from transport.types import (
    MAX_DEVICES,
    Address,
    CacheFormat,
    DeviceFacts,
    LayerRange,
    LinkKind,
    ModelSource,
    Natural,
    NodeFacts,
    NodeId,
    Versions,
    WeightFormat,
)

PROTOCOL_MAJOR: Final = 1
PROTOCOL_MINOR: Final = 0


# --- values that messages carry -----------------------------------------------------------------------------


class StepRow(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's share of a step.

    The sequence has `start` tokens in its KV cache; this step adds `count` more. `blocks[g]` are block ids newly
    given in cache group g, to be placed in the block table from index `first_block[g]` on; a `first_block[0]` of 0
    with blocks replaces the whole tables. Group 0 holds every token's keys and values. Then follows a group for each
    of `Plan.windows`: before a row runs, stages and head drop from its table what lies before the tokens that windows
    from `start` on, and a short rollback, can see (models.cache_window); a table that begins there begins with
    `first_block[g]`. The last group exists where the plan has state slots: its table is one slot, the sequence's
    recurrent state, which is empty at `start` 0. `outputs`: of how many of the row's last tokens the last stage sends
    back the final hidden states: 0 none, 1 the one that is sampled from, more for prompt log-probabilities, embeddings
    and drafted tokens; at most `count`.

    Drafted tokens stand at the end of a row, and those that turn out wrong are taken back by the sequence's next row:
    its `start` is then lower than the tokens that the stages have, by at most `outputs` - 1 of the row before, and
    every stage forgets what lies from there on. No row of a plan with state slots may do so.
    """

    sequence: Natural
    start: Natural
    count: Natural
    first_block: tuple[Natural, ...]
    blocks: tuple[tuple[Natural, ...], ...]
    outputs: Natural


class BlockCopy(msgspec.Struct, frozen=True, array_like=True):
    """All that block `source` of a cache group holds is copied to block `target`, which no sequence has."""

    group: Natural
    source: Natural
    target: Natural


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One pass of a ragged batch through all stages. The same value for a local and a remote stage.

    Executed by (epoch, number), numbers counting from 0 without gaps in each epoch. `ended` are sequences whose
    block tables the stages drop first; then they make `copies`, then they execute `rows`. A step may have no rows.
    `token_ids` is empty unless the plan says that stages need token ids (one per row token, in row order).
    """

    epoch: Natural
    number: Natural
    rows: tuple[StepRow, ...]
    ended: tuple[Natural, ...] = ()
    output: Literal["rows", "tokens"] = "rows"
    token_ids: tuple[Natural, ...] = ()
    copies: tuple[BlockCopy, ...] = ()

    @property
    def token_count(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def output_count(self) -> int:
        return sum(row.outputs for row in self.rows)


class ModelRef(msgspec.Struct, frozen=True):
    """Which checkpoint: every node resolves `source` + `name` to a folder and refuses another `digest`.

    `digest` is the SHA-256 (hex) of config.json and of every safetensors header, in file-name order.
    """

    name: str
    source: ModelSource
    location: str
    digest: str


class StagePlan(msgspec.Struct, frozen=True):
    """A shard's place: `layers` on a device of `node`, and the bytes that it may allocate there.

    `position`: which of the node's devices it is, counted as in its NodeFacts.
    """

    node: NodeId
    device: DeviceFacts
    layers: LayerRange
    weights_bytes: Natural
    kv_bytes: Natural
    workspace_bytes: Natural
    position: Natural = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.workspace_bytes


class WindowGroup(msgspec.Struct, frozen=True, array_like=True):
    """A cache group of the layers that look back `window_tokens` tokens: `block_count` blocks on every stage."""

    window_tokens: Annotated[int, msgspec.Meta(ge=1)]
    block_count: Natural


class Plan(msgspec.Struct, frozen=True):
    """Who holds which layers. Stages are in pipeline order and cover all layers exactly once, none empty.

    Each is on a device of its own; those of one node follow each other. `ends` is the node with embedding, final norm,
    output head and sampler (`ends_bytes` on its first device, beside the stage there).
    `block_count` blocks of `block_tokens` tokens exist in cache group 0 on every stage; each of `windows` is a group
    more, for layers that look back no further; and `state_slots` recurrent states of one sequence each are the last
    group: 0 for a model without, whose steps do not name that group. A stage's `kv_bytes` pay for all of them.
    `quantize`: what the layers' weights are held in, the same on every node, and an output head of its own in eight
    bits; the embedding, and all that is computed, stay in `dtype`. `kv_cache`: what keys and values are held in:
    "plain" is `dtype`.
    """

    epoch: Natural
    model: ModelRef
    dtype: str
    context_tokens: Natural
    block_tokens: Natural
    block_count: Natural
    max_step_tokens: Natural
    ends: NodeId
    ends_bytes: Natural
    stages: tuple[StagePlan, ...]
    state_slots: Natural = 0
    reasons: dict[NodeId, str] = {}
    quantize: WeightFormat = "none"
    windows: tuple[WindowGroup, ...] = ()
    kv_cache: CacheFormat = "plain"

    def firsts(self) -> dict[NodeId, int]:
        """The first stage of each node that holds any, in pipeline order."""
        found: dict[NodeId, int] = {}
        for index, stage in enumerate(self.stages):
            found.setdefault(stage.node, index)
        return found

    def run(self, first: int) -> range:
        """The stages from `first` on that are on one node."""
        end = first
        while end < len(self.stages) and self.stages[end].node == self.stages[first].node:
            end += 1
        return range(first, end)

    def run_layers(self, first: int) -> LayerRange:
        """The layers of these stages together."""
        return LayerRange(self.stages[first].layers.start, self.stages[self.run(first)[-1]].layers.end)


class DeviceLoad(msgspec.Struct, frozen=True):
    """A device's own figures. `layer_tokens` counts executed (layer, token) pairs since start."""

    memory_used_bytes: Natural
    layer_tokens: Natural


class NodeLoad(msgspec.Struct, frozen=True):
    """A node's own figures, sent in every Pong; those of its devices counted as in its NodeFacts."""

    devices: Annotated[tuple[DeviceLoad, ...], msgspec.Meta(max_length=MAX_DEVICES)]
    steps: Natural

    @property
    def memory_used_bytes(self) -> int:
        return sum(device.memory_used_bytes for device in self.devices)

    @property
    def layer_tokens(self) -> int:
        return sum(device.layer_tokens for device in self.devices)


# --- messages -----------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True):
    """Base of all messages. `type_id` is the frame's type; an unknown `optional` one is skipped, others close."""

    type_id: ClassVar[int] = 0
    optional: ClassVar[bool] = False


class Hello(Message, frozen=True):
    """First on every link, in both directions."""

    type_id: ClassVar[int] = 1
    major: Natural
    minor: Natural
    versions: Versions
    node: NodeId
    name: str
    kind: LinkKind
    features: tuple[str, ...] = ()


class Goodbye(Message, frozen=True):
    """The sender closes the link on purpose."""

    type_id: ClassVar[int] = 2
    reason: str


class Join(Message, frozen=True):
    """Worker to head, first after Hello on a control link."""

    type_id: ClassVar[int] = 3
    facts: NodeFacts


class Welcome(Message, frozen=True):
    """Head to worker: accepted. The worker answers each Ping; it takes silence of 3 intervals as a lost head."""

    type_id: ClassVar[int] = 4
    cluster: str
    head: NodeId
    head_addresses: tuple[Address, ...]
    heartbeat_s: Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Refused(Message, frozen=True):
    """Head to worker: not accepted, with a sentence and a hint for the user. The link closes."""

    type_id: ClassVar[int] = 5
    reason: str
    hint: str


class Ping(Message, frozen=True):
    type_id: ClassVar[int] = 6
    number: Natural


class Pong(Message, frozen=True):
    type_id: ClassVar[int] = 7
    number: Natural
    load: NodeLoad


class Assign(Message, frozen=True):
    """Head to worker: load stage `stage` of `plan` and those behind it on the same node, then dial a data link to the
    next node (the last one: to the head).

    `addresses` has every node of the plan, best address first.
    """

    type_id: ClassVar[int] = 8
    plan: Plan
    stage: Natural
    addresses: dict[NodeId, tuple[Address, ...]]


class LoadProgress(Message, frozen=True):
    """Of all that the worker loads for the plan."""

    type_id: ClassVar[int] = 9
    epoch: Natural
    loaded_bytes: Natural
    total_bytes: Natural


class StageReady(Message, frozen=True):
    """All of the worker's stages are loaded, which hold so much together. `direct`: the data link to the next node
    stands; else it goes to the head, which relays.
    """

    type_id: ClassVar[int] = 10
    epoch: Natural
    weights_bytes: Natural
    kv_bytes: Natural
    direct: bool


class AssignRefused(Message, frozen=True):
    """The worker cannot hold it: the head plans again with `present_bytes` as the limit of the device that refused.

    `position`: which of the node's devices that is.
    """

    type_id: ClassVar[int] = 11
    epoch: Natural
    needed_bytes: Natural
    present_bytes: Natural
    reason: str
    position: Natural = 0


class Release(Message, frozen=True):
    """Head to worker: unload everything of this epoch and before."""

    type_id: ClassVar[int] = 12
    epoch: Natural


class StageFailed(Message, frozen=True):
    """Worker to head: a step could not be executed."""

    type_id: ClassVar[int] = 13
    epoch: Natural
    number: Natural
    reason: str


class Activation(Message, frozen=True):
    """Data link: what enters stage `stage` of the plan: tensor "hidden_states" and, in some families, more by name.

    The others are what layers from there on need of what was made before; a stage knows them from its own dry run, and
    refuses other ones. Each has one row per token, as the hidden states do.

    Shape [step.token_count, hidden]; `stage` == number of stages marks the pipeline's output, which holds only the
    outputs of the rows, in row order, [step.output_count, hidden]. The frame's epoch and step number equal the step's.
    """

    type_id: ClassVar[int] = 14
    stage: Natural
    step: Step


class StatusShare(Message, frozen=True):
    """Head to worker, now and then: the cluster's status as JSON, for the worker's own board."""

    type_id: ClassVar[int] = 15
    optional: ClassVar[bool] = True
    status: bytes


class Roll(Message, frozen=True):
    """Head to worker, after Welcome and whenever it changes: who is removed from the cluster, all of them.

    The worker cuts its data links with these. `head_time_s`: the head's clock, Unix seconds; certificates are
    measured against it.
    """

    type_id: ClassVar[int] = 16
    optional: ClassVar[bool] = True
    removed: tuple[NodeId, ...]
    head_time_s: Annotated[float, msgspec.Meta(ge=0, le=2**40)]


class Removed(Message, frozen=True):
    """Head to worker: you are removed from the cluster, and this key opens no link any more. This one closes."""

    type_id: ClassVar[int] = 17
    optional: ClassVar[bool] = True


class Renew(Message, frozen=True):
    """Worker to head: a certificate request (PKCS #10, DER) for its own key, whose certificate is 30 days old."""

    type_id: ClassVar[int] = 18
    optional: ClassVar[bool] = True
    request: bytes


class Renewed(Message, frozen=True):
    """Head to worker, answering Renew: the new certificate (DER)."""

    type_id: ClassVar[int] = 19
    optional: ClassVar[bool] = True
    certificate: bytes


# --- bulk links: a node that lacks the weights of its layers asks the head for them -----------------------------

PIECE_BYTES: Final = 2 << 20
"""The most of a file that one AskPiece may ask for: a wait for a turn is never a wait for much."""
MAX_WEIGHT_FILES: Final = 10_000
SHA256_BYTES: Final = 32


class WeightFileSize(msgspec.Struct, frozen=True, array_like=True):
    """A safetensors file: its whole length, and that of its beginning (the length field and the JSON header)."""

    size_bytes: Natural
    head_bytes: Natural


class AskModel(Message, frozen=True):
    """First on a bulk link: of which files is the model made that has this ModelRef.digest?"""

    type_id: ClassVar[int] = 20
    digest: str


class ModelFiles(Message, frozen=True):
    """Answers AskModel. Files have numbers, no names: 0 is config.json, the weight files count from 1, in order."""

    type_id: ClassVar[int] = 21
    config_bytes: Natural
    files: Annotated[tuple[WeightFileSize, ...], msgspec.Meta(max_length=MAX_WEIGHT_FILES)]


class AskPiece(Message, frozen=True):
    """`size_bytes` (1 to PIECE_BYTES) of a file from `start` on. `known`: the SHA-256 of what the asker has of it."""

    type_id: ClassVar[int] = 22
    file: Natural
    start: Natural
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=PIECE_BYTES)]
    known: Annotated[bytes, msgspec.Meta(max_length=SHA256_BYTES)] = b""


class Piece(Message, frozen=True):
    """Answers AskPiece, in the order asked: its SHA-256, and as tensor "bytes" (uint8) itself, unless it is known."""

    type_id: ClassVar[int] = 23
    sha256: Annotated[bytes, msgspec.Meta(min_length=SHA256_BYTES, max_length=SHA256_BYTES)]


class NotServed(Message, frozen=True):
    """Answers AskModel or AskPiece with a sentence."""

    type_id: ClassVar[int] = 24
    reason: str


class FetchProgress(Message, frozen=True):
    """Worker to head: it lacks weights of its stage, and has fetched so many of their bytes."""

    type_id: ClassVar[int] = 25
    optional: ClassVar[bool] = True
    epoch: Natural
    fetched_bytes: Natural
    total_bytes: Natural


class Leaving(Message, frozen=True):
    """Worker to head: this node is about to end. The head hands its layers to others, and answers with Release once
    they serve, or at once where nothing is to be handed over or nobody can take it. A head of before 26 skips it."""

    type_id: ClassVar[int] = 26
    optional: ClassVar[bool] = True


CARRIERS: Final = frozenset({Activation.type_id, Piece.type_id})
"""The messages that may come with a payload."""

MESSAGES: Final[dict[int, type[Message]]] = {
    message.type_id: message
    for message in (
        Hello, Goodbye, Join, Welcome, Refused, Ping, Pong, Assign, LoadProgress, StageReady, AssignRefused,
        Release, StageFailed, Activation, StatusShare, Roll, Removed, Renew, Renewed, AskModel, ModelFiles, AskPiece,
        Piece, NotServed, FetchProgress, Leaving,
    )
}  # fmt: skip
"""Every message by its frame type."""
