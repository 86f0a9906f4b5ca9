"""One sequence on the head: its tokens, its block table, and how far the stages have followed.

Pure state with small transitions; which sequence runs when is the scheduler's business. Never sockets, clocks, torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transport.messages import BlockCopy, StepRow
from vramancer_cli.models.readout import NO_READING, PromptReading, Readout
from vramancer_cli.models.sampling import Draw, Sampling, next_draw
from vramancer_cli.scheduling.digests import chained_digest

FinishReason = Literal["stop", "length"]


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and what has been generated from it.

    A higher `priority` goes first; within one a lower `arrival`, the older. `digests` stand for its full blocks, as far
    as anybody asked. `blocks` is the block table, `copies` fill blocks of it before the next row, `announced_blocks`
    how many of its entries the stages know. `state_slot` is its place among the recurrent states, -1 for none yet.
    `cached_tokens` are in the KV cache of every stage, by steps that came back.
    `read_tokens`: of so many tokens of the prompt came back what `reading` wants, and it is not asked for again when
    the sequence has to be computed again; with max_tokens 0 nothing follows the prompt.
    `last_turn` counts rows of all sequences: the lower, the longer ago this one had a row.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop_token_ids: frozenset[int]
    arrival: int
    reading: PromptReading = NO_READING
    priority: int = 0
    generated: list[int] = field(default_factory=list[int])
    digests: list[bytes] = field(default_factory=list[bytes])
    blocks: list[int] = field(default_factory=list[int])
    copies: tuple[BlockCopy, ...] = ()
    announced_blocks: int = 0
    state_slot: int = -1
    cached_tokens: int = 0
    read_tokens: int = 0
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
    def reusable_tokens(self) -> int:
        """So many of its first tokens need not run if cached; the last one must, and those still to be read."""
        unread = self.reading.every_token and self.read_tokens < len(self.prompt)
        return self.read_tokens if unread else self.token_count - 1

    @property
    def next_draw(self) -> Draw:
        """Depends on what was generated only, so a recomputed sequence draws what it would have drawn."""
        return next_draw(self.sampling, self.prompt, self.generated, self.stop_token_ids)

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

    def next_readout(self, count: int) -> Readout | None:
        """What is wanted of the next `count` tokens' final hidden states, if anything is."""
        end, unread = self.cached_tokens + count, self._unread(count)
        draw = self.next_draw if self._draws(count) else None
        if not unread:
            return Readout(self.id, 1, draw) if draw else None
        scored = self.reading.top_logprobs is not None
        return Readout(
            sequence=self.id,
            outputs=unread,
            draw=draw,
            targets=self.prompt[end - unread + 1 : end + 1] if scored else (),
            top_logprobs=self.reading.top_logprobs or 0,
            pooled=self.reading.pooling is not None,
        )

    def _draws(self, count: int) -> bool:
        """Whether a token is drawn after the next `count` ones."""
        return count == self.uncached_tokens and self.max_tokens > 0

    def _unread(self, count: int) -> int:
        """Of how many of the next `count` tokens, the last ones, `reading` wants the outputs."""
        end = self.cached_tokens + count
        if self.reading.every_token:
            return max(0, min(end, len(self.prompt)) - max(self.cached_tokens, self.read_tokens))
        return int(self.reading.pooling == "last" and end == len(self.prompt) > self.read_tokens)

    def launch(self, count: int) -> StepRow:
        """The row that runs the next `count` tokens, with all blocks that the stages do not know yet. The sequence's
        `copies` must ride in the same step."""
        known = self.announced_blocks
        first_block, blocks = (known,), (tuple(self.blocks[known:]),)
        if self.state_slot >= 0:
            first_block = (known, int(known > 0))
            blocks = (*blocks, () if known else (self.state_slot,))
        outputs = max(self._unread(count), int(self._draws(count)))
        row = StepRow(self.id, self.cached_tokens, count, first_block, blocks, outputs)
        self.announced_blocks = len(self.blocks)
        self.copies = ()
        self.in_flight = True
        return row

    def land(self, count: int) -> None:
        """The step with `count` tokens of this sequence came back."""
        self.cached_tokens += count
        self.read_tokens = max(self.read_tokens, min(self.cached_tokens, len(self.prompt)))
        self.in_flight = False

    def accept(self, token: int) -> FinishReason | None:
        """Take a sampled token; a stop token ends the sequence and is not kept."""
        if token in self.stop_token_ids:
            return "stop"
        self.generated.append(token)
        return "length" if len(self.generated) == self.max_tokens else None

    def ground(self) -> None:
        """No step that it is in comes back, and no cache that it was in is left: a new epoch knows it by its tokens."""
        self.in_flight = False
        self.last_turn = -1
        self.digests.clear()

    def drop_cache(self) -> tuple[int, ...]:
        """Forget the KV cache, not the tokens; returns the blocks that were held."""
        blocks = tuple(self.blocks)
        self.blocks.clear()
        self.announced_blocks = self.cached_tokens = 0
        self.copies, self.state_slot = (), -1
        return blocks
