"""One sequence on the head: its tokens, its block tables, and how far the stages have followed.

Pure state with small transitions; which sequence runs when is the scheduler's business. Never sockets, clocks, torch.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from transport.messages import BlockCopy, StepRow
from vramancer_cli.models.readout import NO_READING, PromptReading, Readout
from vramancer_cli.models.sampling import Draw, Sampling, next_draw
from vramancer_cli.scheduling.cache_group import HeldBlocks
from vramancer_cli.scheduling.digests import chained_digest
from vramancer_cli.scheduling.guesses import Guesses

FinishReason = Literal["stop", "length"]


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and what has been generated from it.

    A higher `priority` goes first; within one a lower `arrival`, the older. `digests` stand for its full blocks, as far
    as anybody asked. `tables` are its block tables, one for each cache group and none while it waits; `copies` fill
    blocks of them before the next row. `state_slot` is its place among the recurrent states, -1 for none yet.
    `cached_tokens` are in the KV cache of every stage, by steps that came back; `launched_tokens` with those on their
    way. `in_flight` rows are, or are just picked: several parts of a prompt, or the one that draws.
    `read_tokens`: of so many tokens of the prompt came back what `reading` wants, and it is not asked for again when
    the sequence has to be computed again; with max_tokens 0 nothing follows the prompt.
    `last_turn` counts rows of all sequences: the lower, the longer ago this one had a row.
    `draft`: guesses at the tokens that come next, in the row that runs now or is about to; `guesses` makes them.
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
    tables: list[HeldBlocks] = field(default_factory=list[HeldBlocks])
    copies: tuple[BlockCopy, ...] = ()
    state_slot: int = -1
    cached_tokens: int = 0
    launched_tokens: int = 0
    read_tokens: int = 0
    in_flight: int = 0
    last_turn: int = -1
    draft: tuple[int, ...] = ()
    guesses: Guesses = field(default_factory=Guesses)
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
    def unlaunched_tokens(self) -> int:
        """Tokens that must still get a row; 0 while one that draws is on its way."""
        return self.token_count - self.launched_tokens

    @property
    def reusable_tokens(self) -> int:
        """So many of its first tokens need not run if cached; the last one must, and those still to be read."""
        unread = self.reading.every_token and self.read_tokens < len(self.prompt)
        return self.read_tokens if unread else self.token_count - 1

    @property
    def next_draws(self) -> tuple[Draw, ...]:
        """Of the next token, and behind each drafted one, as if those before it had been drawn.

        Depends on these tokens only, so a recomputed sequence draws what it would have drawn.
        """
        drafts = [self.draft[:count] for count in range(len(self.draft) + 1)]
        return tuple(
            next_draw(self.sampling, self.prompt, self.generated, self.stop_token_ids, draft) for draft in drafts
        )

    def next_tokens(self, count: int) -> tuple[int, ...]:
        """The first `count` of the unlaunched tokens and the draft."""
        known = self.tokens(self.launched_tokens, self.launched_tokens + count)
        return known + self.draft[: count - len(known)]

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Of prompt and generated ones those at positions [start, end), without touching the (long) rest."""
        prompt_end = len(self.prompt)
        return self.prompt[start:end] + tuple(self.generated[max(0, start - prompt_end) : max(0, end - prompt_end)])

    @property
    def is_announced(self) -> bool:
        """Stages hold tables of it."""
        return any(held.announced for held in self.tables)

    def begin(
        self, tables: Iterable[HeldBlocks], cached_tokens: int, copies: tuple[BlockCopy, ...], state_slot: int
    ) -> None:
        """Hold a part of the KV cache in which the first `cached_tokens` tokens lie, once `copies` are made."""
        self.tables.extend(tables)
        self.cached_tokens = self.launched_tokens = cached_tokens
        self.copies, self.state_slot = copies, state_slot

    def next_readout(self, count: int) -> Readout | None:
        """What is wanted of the next `count` tokens' final hidden states, if anything is."""
        end, unread = self.launched_tokens + count, self._unread(count)
        draws = self.next_draws if self._draws(count) else ()
        if not unread:
            return Readout(self.id, len(draws), draws) if draws else None
        scored = self.reading.top_logprobs is not None
        return Readout(
            sequence=self.id,
            outputs=unread,
            draws=draws,
            targets=self.prompt[end - unread + 1 : end + 1] if scored else (),
            top_logprobs=self.reading.top_logprobs or 0,
            pooled=self.reading.pooling is not None,
        )

    def _draws(self, count: int) -> bool:
        """Whether a token is drawn after the next `count` ones."""
        return count == self.unlaunched_tokens + len(self.draft) and self.max_tokens > 0

    def _unread(self, count: int) -> int:
        """Of how many of the next `count` tokens, the last ones, `reading` wants the outputs."""
        end = self.launched_tokens + count
        if self.reading.every_token:
            return max(0, min(end, len(self.prompt)) - max(self.launched_tokens, self.read_tokens))
        return int(self.reading.pooling == "last" and end == len(self.prompt) > self.read_tokens)

    def pick(self, turn: int) -> None:
        """It has a row in the step that is put together: from here on nobody may take its blocks."""
        self.last_turn = turn
        self.in_flight += 1

    def launch(self, count: int) -> StepRow:
        """The row that runs the next `count` tokens, the whole draft among them or nothing of it, with all blocks that
        the stages do not know yet. The sequence's `copies` must ride in the same step."""
        known = self.is_announced
        parts = [held.announce() for held in self.tables]
        if self.state_slot >= 0:
            parts.append((1, ()) if known else (0, (self.state_slot,)))
        first_block, blocks = tuple(first for first, _ in parts), tuple(given for _, given in parts)
        outputs = max(self._unread(count), 1 + len(self.draft) if self._draws(count) else 0)
        row = StepRow(self.id, self.launched_tokens, count, first_block, blocks, outputs)
        self.copies = ()
        self.launched_tokens += count - len(self.draft)
        return row

    def land(self, count: int) -> None:
        """The step with the first of its rows came back, and `count` tokens of that stay."""
        self.cached_tokens += count
        self.launched_tokens = max(self.launched_tokens, self.cached_tokens)  # guesses that were right
        self.read_tokens = max(self.read_tokens, min(self.cached_tokens, len(self.prompt)))
        self.draft = ()
        self.in_flight -= 1

    def verified(self, drawn: abc.Sequence[int]) -> int:
        """How many tokens of the draft, from its first on, are what was drawn."""
        wrong = (place for place, guess in enumerate(self.draft) if guess != drawn[place])
        return next(wrong, len(self.draft))

    def accept_all(self, tokens: Iterable[int]) -> FinishReason | None:
        """Take sampled tokens, up to one that ends the sequence."""
        return next((reason for token in tokens if (reason := self.accept(token))), None)

    def accept(self, token: int) -> FinishReason | None:
        """Take a sampled token; a stop token ends the sequence and is not kept."""
        if token in self.stop_token_ids:
            return "stop"
        self.generated.append(token)
        return "length" if len(self.generated) == self.max_tokens else None

    def ground(self) -> None:
        """No step that it is in comes back, and no cache that it was in is left: a new epoch knows it by its tokens."""
        self.in_flight = 0
        self.last_turn = -1
        self.digests.clear()

    def drop_cache(self) -> list[HeldBlocks]:
        """Forget the KV cache, not the tokens; returns what was held of each group."""
        tables, self.tables = self.tables, []
        self.cached_tokens = self.launched_tokens = 0
        self.copies, self.state_slot, self.draft = (), -1, ()
        return tables
