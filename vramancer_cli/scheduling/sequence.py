"""One sequence on the head: its tokens, its block table, and how far the stages have followed.

Pure state with small transitions; which sequence runs when is the scheduler's business. Never sockets, clocks, torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transport.messages import BlockCopy, StepRow
from vramancer_cli.models.sampling import Draw, Sampling
from vramancer_cli.scheduling.digests import chained_digest

FinishReason = Literal["stop", "length"]


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and what has been generated from it.

    A higher `priority` goes first; within one a lower `arrival`, the older. `reuses`: what is cached of its first
    tokens need not be computed again. `digests` stand for its full blocks, as far as anybody asked.
    `blocks` is the block table, `copies` fill blocks of it before the next row, `announced_blocks` how
    many of its entries the stages know. `state_slot` is its place among the recurrent states, -1 for none yet.
    `cached_tokens` are in the KV cache of every stage, by steps that came back.
    `last_turn` counts rows of all sequences: the lower, the longer ago this one had a row.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop_token_ids: frozenset[int]
    arrival: int
    priority: int = 0
    reuses: bool = True
    generated: list[int] = field(default_factory=list[int])
    digests: list[bytes] = field(default_factory=list[bytes])
    blocks: list[int] = field(default_factory=list[int])
    copies: tuple[BlockCopy, ...] = ()
    announced_blocks: int = 0
    state_slot: int = -1
    cached_tokens: int = 0
    in_flight: bool = False
    last_turn: int = -1
    prompt_digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_digest = chained_digest(b"", self.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts those first that must yield last."""
        return -self.priority, self.arrival

    @property
    def token_count(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def uncached_tokens(self) -> int:
        """Tokens that must pass the stages before the next one can be sampled; never 0 between steps."""
        return self.token_count - self.cached_tokens

    @property
    def next_draw(self) -> Draw:
        """Depends on what was generated only, so a recomputed sequence draws what it would have drawn."""
        return Draw(self.sampling, len(self.generated))

    def next_tokens(self, count: int) -> tuple[int, ...]:
        """The first `count` uncached tokens."""
        return self.tokens(self.cached_tokens, self.cached_tokens + count)

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Of prompt and generated ones those at positions [start, end), without touching the (long) rest."""
        prompt_end = len(self.prompt)
        return self.prompt[start:end] + tuple(self.generated[max(0, start - prompt_end) : max(0, end - prompt_end)])

    def begin(
        self, blocks: tuple[int, ...], cached_tokens: int, copies: tuple[BlockCopy, ...], state_slot: int
    ) -> None:
        """Hold a part of the KV cache in which the first `cached_tokens` tokens lie, once `copies` are made."""
        self.blocks.extend(blocks)
        self.cached_tokens, self.copies, self.state_slot = cached_tokens, copies, state_slot

    def launch(self, count: int) -> StepRow:
        """The row that runs the next `count` tokens, with all blocks that the stages do not know yet. The sequence's
        `copies` must ride in the same step."""
        known = self.announced_blocks
        first_block, blocks = (known,), (tuple(self.blocks[known:]),)
        if self.state_slot >= 0:
            first_block = (known, int(known > 0))
            blocks = (*blocks, () if known else (self.state_slot,))
        row = StepRow(self.id, self.cached_tokens, count, first_block, blocks, int(count == self.uncached_tokens))
        self.announced_blocks = len(self.blocks)
        self.copies = ()
        self.in_flight = True
        return row

    def land(self, count: int) -> None:
        """The step with `count` tokens of this sequence came back."""
        self.cached_tokens += count
        self.in_flight = False

    def accept(self, token: int) -> FinishReason | None:
        """Take a sampled token; a stop token ends the sequence and is not kept."""
        if token in self.stop_token_ids:
            return "stop"
        self.generated.append(token)
        return "length" if len(self.generated) == self.max_tokens else None

    def drop_cache(self) -> tuple[int, ...]:
        """Forget the KV cache, not the tokens; returns the blocks that were held."""
        blocks = tuple(self.blocks)
        self.blocks.clear()
        self.announced_blocks = self.cached_tokens = 0
        self.copies, self.state_slot = (), -1
        return blocks
