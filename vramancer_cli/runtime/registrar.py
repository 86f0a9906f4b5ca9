"""The head's registrar: who was let in and by which invitation, which join tokens are open, who was removed.

It keeps three small files in the state folder (see `trust_records`), and gives certificates anew. A secret is never
in them: of a token only its hash. Never sockets, torch or the terminal here; links are cut by `coordinator`, which
asks this.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from transport.contracts import Outcome
from transport.errors import RemovedError, TransportError, TrustError
from transport.identity import ClusterAuthority, is_node_id, node_id_of_request, to_der
from transport.tokens import SECRET_BYTES, Token, hash_secret
from transport.types import NodeId
from vramancer_cli.errors import UsageError
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.trust_records import (
    ADMITTED_FILE,
    REVOKED_FILE,
    TOKENS_FILE,
    Admission,
    Removal,
    TokenRecord,
    TokenUse,
    read_admissions,
    read_removals,
    read_tokens,
)
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.telemetry import log
from vramancer_cli.telemetry.security import Kind
from vramancer_cli.telemetry.security_log import SecurityLog

OPEN_TOKENS: Final = 32
KEPT_TOKENS: Final = 64
KEPT_USES: Final = 8
KEPT_ADMISSIONS: Final = 256
MOST_REMOVALS: Final = 256
MOST_HOURS: Final = 24 * 365
_SHORT_ID: Final = re.compile(r"[0-9a-f]{8,32}")

_OUTCOMES: Final = {
    "admitted": Kind.ADMITTED,
    "wrong code": Kind.WRONG_CODE,
    "code not open": Kind.CODE_NOT_OPEN,
    "wrong token": Kind.WRONG_TOKEN,
    "removed": Kind.TURNED_AWAY,
    "renewed": Kind.RENEWED,
    "not renewed": Kind.NOT_RENEWED,
}


class Registrar:
    """One per head. A `transport.contracts.Book`: its methods may come from any thread, and write before they return.

    Without `folder` everything is kept in memory only; without `authority` no certificate is given anew. `events` is
    the node's log of security events.
    """

    def __init__(
        self,
        folder: StateFolder | None = None,
        authority: ClusterAuthority | None = None,
        clock: Callable[[], float] = time.time,
        events: SecurityLog | None = None,
    ) -> None:
        self.events = events or SecurityLog(None)
        self._folder = folder
        self._authority = authority
        self._clock = clock
        self._lock = threading.Lock()
        self._log = log.get("registrar")
        self._tokens = read_tokens(folder.path) if folder else ()
        self._admissions = read_admissions(folder.path) if folder else ()
        self._removals = read_removals(folder.path) if folder else ()
        self._removed = frozenset(removal.node for removal in self._removals)

    @property
    def removed(self) -> frozenset[NodeId]:
        return self._removed

    @property
    def tokens(self) -> Sequence[TokenRecord]:
        """Oldest first; of those that are over, only the younger ones."""
        return self._tokens

    @property
    def admissions(self) -> Sequence[Admission]:
        """Oldest first."""
        return self._admissions

    @property
    def removals(self) -> Sequence[Removal]:
        return self._removals

    async def off_loop(self, work: Callable[[], None]) -> None:
        """`work`, which writes, on a thread; where everything is in memory only, there is nothing to wait for."""
        if self._folder is None:
            work()
        else:
            await asyncio.to_thread(work)

    def now(self) -> float:
        """Unix seconds, as certificates and the workers' clocks are measured against."""
        return self._clock()

    # --- tokens -------------------------------------------------------------------------------------------------

    def invite(self, *, reusable: bool, hours: float) -> tuple[str, TokenRecord]:
        """(a new join token as text, shown once; its record). Raises UsageError, StateFolderError."""
        if self._authority is None:
            raise UsageError("This node cannot make join tokens.")
        if not 0 < hours <= MOST_HOURS:
            raise UsageError(f"A join token lives for up to {MOST_HOURS} hours, and more than none.")
        now = self._clock()
        secret = secrets.token_bytes(SECRET_BYTES)
        record = TokenRecord(hash_secret(secret), now, now + hours * 3600, reusable)
        with self._lock:
            self._refuse_too_many(now)
            self._keep_tokens((*self._tokens, record))
        self._log.info("join token made", invitation=record.id, reusable=reusable, hours=hours)
        self.events.note(Kind.TOKEN_MADE, invitation=f"token {record.id}")
        digest = hashlib.sha256(to_der(self._authority.certificate_pem)).digest()
        return str(Token(digest, secret)), record

    def redeem(self, secret: bytes, node: NodeId, now: float) -> bool:
        """See `transport.contracts.Book`; the admission is written too."""
        digest = hash_secret(secret)
        with self._lock, _as_transport_error():
            found = [t for t in self._tokens if hmac.compare_digest(t.digest, digest) and t.open(now)]
            if not found:
                return False
            used = replace(
                found[0],
                use_count=found[0].use_count + 1,
                last_uses=(*found[0].last_uses, TokenUse(node, now))[-KEPT_USES:],
            )
            self._keep_tokens(tuple(used if t.digest == digest else t for t in self._tokens))
            self._admit(Admission(node, f"token {used.id}", now))
        return True

    def _refuse_too_many(self, now: float) -> None:
        if sum(token.open(now) for token in self._tokens) >= OPEN_TOKENS:
            raise UsageError(
                f"{OPEN_TOKENS} join tokens are open already.", hint="Use one of them, or make the next --reusable."
            )

    def _keep_tokens(self, tokens: tuple[TokenRecord, ...]) -> None:
        """Raises StateFolderError, and then nothing has changed."""
        now = self._clock()
        over = [token for token in tokens if not token.open(now)]
        forgotten = over[: max(0, len(tokens) - KEPT_TOKENS)]
        tokens = tuple(token for token in tokens if token not in forgotten)
        self._save(TOKENS_FILE, tokens)
        self._tokens = tokens

    # --- admissions ---------------------------------------------------------------------------------------------

    def admit(self, node: NodeId, how: str, now: float) -> None:
        """See `transport.contracts.Book`."""
        with self._lock, _as_transport_error():
            self._admit(Admission(node, how, now))

    def named(self, node: NodeId, name: str) -> None:
        """A node has joined under this name; written where it is news. A full disk keeps nobody out for that."""
        with self._lock, suppress(StateFolderError):
            named = tuple(replace(a, name=name) if a.node == node else a for a in self._admissions)
            if named != self._admissions:
                self._keep_admissions(named)

    def renew(self, node: NodeId, csr_der: bytes) -> bytes:
        """A new certificate (DER) for a node that proved who it is. Raises TrustError for a request of another key."""
        if self._authority is None or node_id_of_request(csr_der) != node:
            raise TrustError("A node asked for the certificate of another one.")
        if self.is_removed(node):
            raise RemovedError
        self._log.info("certificate renewed", node=node)
        self.events.note(Kind.RENEWED, node=node)
        return self._authority.issue(csr_der, self._clock())

    def _admit(self, admission: Admission) -> None:
        others = tuple(a for a in self._admissions if a.node != admission.node)
        self._keep_admissions((*others, admission)[-KEPT_ADMISSIONS:])
        self._log.info("machine let in", node=admission.node, how=admission.how)

    def _keep_admissions(self, admissions: tuple[Admission, ...]) -> None:
        self._save(ADMITTED_FILE, admissions)
        self._admissions = admissions

    # --- removals -----------------------------------------------------------------------------------------------

    def is_removed(self, node: NodeId) -> bool:
        return node in self._removed

    def find(self, text: str, present: Mapping[NodeId, str]) -> NodeId:
        """The node that a person means: by its name, its id, or the id's first 8 digits or more.

        `present`: the names of nodes that are or were here. Raises UsageError for none or several.
        """
        names = {a.node: a.name for a in self._admissions} | dict(present)
        names = {node: name for node, name in names.items() if node not in self._removed}
        meant = [node for node, name in names.items() if name == text]
        if not meant and _SHORT_ID.fullmatch(text.lower()):
            meant = [node for node in names if node.startswith(text.lower())]
        if len(meant) == 1:
            return meant[0]
        if not meant and is_node_id(text.lower()):
            return text.lower()  # one that was here before this head kept a book
        if not meant:
            raise UsageError(f"No node is called '{text}'.", hint="See 'vramancer nodes' for names and ids.")
        raise UsageError(
            f"{len(meant)} nodes are called '{text}'.", hint=f"Name one by its id: {', '.join(sorted(meant))}."
        )

    def remove(self, node: NodeId) -> None:
        """For ever: a machine that comes back makes itself a new key, with a new code or token.

        Raises UsageError, StateFolderError; then nothing has changed.
        """
        with self._lock:
            if len(self._removals) >= MOST_REMOVALS:
                raise UsageError(
                    f"{MOST_REMOVALS} nodes were removed from this cluster, and more are not kept.",
                    hint="Found a new cluster: name an empty folder with --state-dir.",
                )
            removals = (*self._removals, Removal(node, self._clock()))
            self._save(REVOKED_FILE, removals)
            self._removals = removals
            self._removed = frozenset(removal.node for removal in removals)
        self._log.warning("node removed", node=node)
        self.events.note(Kind.REMOVED, node=node, name=self._name_of(node))

    def _name_of(self, node: NodeId) -> str:
        return next((admission.name for admission in self._admissions if admission.node == node), "")

    # --- events -------------------------------------------------------------------------------------------------

    def note(self, outcome: Outcome, host: str) -> None:
        """See `transport.contracts.Book`."""
        self.events.note(
            _OUTCOMES[outcome.kind],
            node=outcome.node,
            name=self._name_of(outcome.node),
            address=host,
            invitation=outcome.invitation,
            tries=outcome.tries,
        )

    # --- files --------------------------------------------------------------------------------------------------

    def _save(self, name: str, value: object) -> None:
        if self._folder is not None:
            self._folder.write_record(name, value)


@contextmanager
def _as_transport_error() -> Generator[None]:
    """What `transport` catches: a caller is turned away, and nothing was handed out."""
    try:
        yield
    except StateFolderError as error:
        log.get("registrar").error("nobody can be let in", reason=str(error))
        raise TransportError(str(error)) from error
