"""The states of sequences, for models whose layers keep more of a sequence than its tokens: one cache per slot.

Slots come from the head, like blocks, and are valid on every stage. Must never decide which slot a sequence gets.
"""

from __future__ import annotations

from transport.errors import RemoteProtocolError
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.sequence_cache import Place, SequenceCache
from vramancer_cli.engine.shard import Shard


class StatePool:
    """At most `slots` states, each as large as `Shard.state_elements` says.

    With 0 slots sequences have none: then one cache, which holds nothing of its own, serves them all in turn.
    """

    def __init__(self, shard: Shard, slots: int) -> None:
        self._shard = shard
        self._slots = slots
        self._caches: dict[int, SequenceCache] = {}
        self._stateless: SequenceCache | None = None

    def cache(self, row: PlacedRow, place: Place) -> SequenceCache:
        """The cache of the row's sequence; a new one where it begins. Raises RemoteProtocolError."""
        if not self._slots:
            self._stateless = self._stateless or self._shard.new_cache(place)
            return self._stateless
        slot = -1 if row.state is None else row.state
        if row.start == 0 and 0 <= slot < self._slots:
            self._caches[slot] = self._shard.new_cache(place)
        if slot not in self._caches:
            raise RemoteProtocolError(f"A sequence goes on at {row.start} from state slot {slot}, which is empty.")
        return self._caches[slot]

    def clear(self) -> None:
        """Free all memory at once, whoever still refers to the pool."""
        self._caches.clear()
        self._stateless = None
