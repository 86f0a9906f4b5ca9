"""A master's book for a test: one single-use token, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from transport.contracts import Outcome
from transport.errors import TransportError
from transport.types import NodeId


@dataclass
class OneTokenBook:
    """A `transport.contracts.Book`. `admitted` has what was told of pairings."""

    secret: bytes
    removed: set[NodeId] = field(default_factory=set)
    used_by: list[NodeId] = field(default_factory=list)
    admitted: list[tuple[NodeId, str]] = field(default_factory=list)
    fails: bool = False
    noted: list[tuple[Outcome, str]] = field(default_factory=list)

    def is_removed(self, node: NodeId) -> bool:
        return node in self.removed

    def redeem(self, secret: bytes, node: NodeId, now: float) -> bool:
        self._write()
        if secret != self.secret or self.used_by:
            return False
        self.used_by.append(node)
        return True

    def admit(self, node: NodeId, how: str, now: float) -> None:
        self._write()
        self.admitted.append((node, how))

    def note(self, outcome: Outcome, host: str) -> None:
        self.noted.append((outcome, host))

    def _write(self) -> None:
        if self.fails:
            raise TransportError("The disk is full.")
