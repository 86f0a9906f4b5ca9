"""The gate: what every request passes before its body is read. Rate, then Host and Origin, then key, then role.

Holds what a decision needs to remember: the keys, the buckets, the signed requests seen, and which answers run under
which key. Knows nothing of aiohttp; a refusal is a RefusedError with the whole reply, and an event in the security log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from vramancer_cli.serving import signing
from vramancer_cli.serving.auth import GRANTS, Asked, Role, is_loopback, origin_allowed, refusal
from vramancer_cli.serving.faults import Fault, RefusedError
from vramancer_cli.serving.key_ring import KeyRing
from vramancer_cli.serving.keys import KeyRecord
from vramancer_cli.serving.rate import Buckets, home_of
from vramancer_cli.serving.replay import ReplayedError, ReplayGuard
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.telemetry.security import Action, Kind, Why
from vramancer_cli.telemetry.security_log import SecurityLog

LOG: Final = logging.getLogger(__name__)
_WHY: Final[dict[str | None, Why]] = {
    "host_not_allowed": "host",
    "origin_not_allowed": "origin",
    "https_required": "https",
    "no_role": "no role",
    "insufficient_role": "role",
    "request_replayed": "replay",
    "request_expired": "clock",
    "too_many_wrong_keys": "guesses",
}
"""Refusals that are events, by their codes; wrong keys have a kind of their own."""
_ACTIONS: Final[dict[str, Action]] = {
    "POST /api/invites": "invite",
    "POST /api/tokens": "token",
    "DELETE /api/nodes/": "remove",
    "POST /api/nodes/": "drain",
}
HOW_TO_SHOW: Final = "'Authorization: Bearer <key>' or 'X-Api-Key: <key>'"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was let in. `key` None: somebody on this machine. `body`: the digest of a signed request's body."""

    role: Role
    key: KeyRecord | None = None
    body: str | None = None


class Gate:
    """One server's. `open_bind` is set when it listens: whether its address is a loopback one."""

    def __init__(self, settings: ServerSettings, events: SecurityLog | None = None) -> None:
        self._settings = settings
        self._events = events or SecurityLog(None)
        self.keys = KeyRing(settings.state_folder, settings.api_token)
        self.open_bind = False
        limit = settings.default_rate_limit if settings.rate_limit is None else settings.rate_limit
        self._rate = Buckets(limit) if limit else None
        self._wrong = Buckets(settings.wrong_keys_limit)
        self._replay = ReplayGuard(settings.state_folder)
        self._running: dict[asyncio.Task[Any], KeyRecord] = {}

    def listens_on(self, host: str) -> None:
        self.open_bind = is_loopback(host)

    async def admit(self, asked: Asked, role: Role | None) -> Caller:
        """Raises RefusedError with the reply for whoever may not pass; StateFolderError."""
        try:
            caller = await self._admit(asked, role)
        except RefusedError as error:
            why = _WHY.get(error.fault.code)
            if why is not None:
                self._events.note(Kind.REFUSED, why=why, address=asked.peer)
            raise
        self._note_action(asked, caller)
        return caller

    async def _admit(self, asked: Asked, role: Role | None) -> Caller:
        self._count(f"address {home_of(asked.peer)}", asked)
        fault = refusal(asked, role, self._settings)
        if fault is not None:
            raise RefusedError(fault)
        if role == "open" or role is None:
            return Caller("open")
        caller = await self._who(asked)
        if role not in GRANTS[caller.role]:
            told = Fault(403, f"This takes a key of role {role}.", "permission_error", code="insufficient_role")
            raise RefusedError(told)
        if caller.key is not None:
            self._count(f"key {caller.key.id}", asked)
        return caller

    def _note_action(self, asked: Asked, caller: Caller) -> None:
        """Whoever changes who belongs to the cluster."""
        asks = f"{asked.method} {asked.target}"
        for start, action in _ACTIONS.items():
            if asks.startswith(start):
                key = caller.key.name if caller.key else ""
                self._events.note(Kind.ADMIN_ASKED, action=action, address=asked.peer, key=key)

    # --- who asks -------------------------------------------------------------------------------------------

    async def _who(self, asked: Asked) -> Caller:
        if signing.is_signed(asked.authorization):
            return await self._signed(asked)
        if self._is_open_to(asked):
            return Caller(self._open_role(asked))
        shown = asked.shown_key
        if shown is None:
            self._refuse_key(f"This server asks for a key: {HOW_TO_SHOW}.")
        self._check_guesses(asked)
        record = self.keys.find(shown, time.time())
        if record is None:
            self._wrong_key(asked, self.keys.ended(shown, time.time()))
        return Caller(record.role, record)

    def _is_open_to(self, asked: Asked) -> bool:
        """This machine, on a loopback bind, where nothing was set that wants a key of everybody."""
        return self.open_bind and asked.near and not asked.forwarded and not self._settings.asks_everybody

    def _open_role(self, asked: Asked) -> Role:
        """A page of another site that was let in by --cors-origin may ask, but not let machines join."""
        own_page = asked.origin is None or origin_allowed(asked.origin, asked.host or "")
        return "admin" if own_page else "user"

    async def _signed(self, asked: Asked) -> Caller:
        """The signature first: nothing else is told to whoever does not hold the key."""
        self._check_guesses(asked)
        now = time.time()
        signed = signing.parse(asked.authorization or "")
        record = None if signed is None else self.keys.of_id(signed.key, now)
        if signed is None or record is None:
            self._wrong_key(asked)
        if not signing.is_valid(signed, record.signing, asked.method, asked.target):
            self._wrong_key(asked)
        if abs(now - signed.time_s) > signing.WINDOW_S:
            told = f"The request was signed at {signed.time_s}, and this server's clock says {now:.0f}: too far apart."
            self._refuse_key(told, "request_expired")
        try:
            await self._replay.accept(signed, now)
        except ReplayedError:
            self._refuse_key("This signed request was seen before: sign again, with a new nonce.", "request_replayed")
        return Caller(record.role, record, signed.body)

    def _check_guesses(self, asked: Asked) -> None:
        """Before the key is looked at: else a right guess would still be told from a wrong one."""
        wait_s = self._wrong.wait_s(home_of(asked.peer), time.monotonic())
        if wait_s:
            self._slow_down("Too many wrong keys came from this address.", "too_many_wrong_keys", wait_s)

    def _wrong_key(self, asked: Asked, ended: KeyRecord | None = None) -> NoReturn:
        self._wrong.take(home_of(asked.peer), time.monotonic())
        kind, name = (Kind.KEY_ENDED, ended.name) if ended else (Kind.WRONG_KEY, "")
        self._events.note(kind, address=asked.peer, key=name)
        LOG.warning("a wrong key was shown from %s", asked.peer)
        self._refuse_key("This key is not valid here.")

    def _refuse_key(self, told: str, code: str = "invalid_api_key") -> NoReturn:
        raise RefusedError(Fault(401, told, code=code, headers={"WWW-Authenticate": "Bearer"}))

    # --- how often ------------------------------------------------------------------------------------------

    def _count(self, who: str, asked: Asked) -> None:
        spared = self._settings.rate_limit is None and asked.near and not asked.forwarded
        wait_s = 0.0 if self._rate is None or spared else self._rate.take(who, time.monotonic())
        if wait_s:
            self._slow_down("Too many requests in a short time.", "rate_limited", wait_s)

    def _slow_down(self, told: str, code: str, wait_s: float) -> NoReturn:
        seconds = math.ceil(wait_s)
        headers = {"Retry-After": str(seconds)}
        raise RefusedError(Fault(429, f"{told} Try again in {seconds} s.", "rate_limit_error", None, code, headers))

    # --- for how long ---------------------------------------------------------------------------------------

    @contextmanager
    def running(self, caller: Caller) -> Generator[None]:
        """While the current task answers `caller`: it is cancelled when the key is revoked or ends."""
        task = asyncio.current_task()
        if task is None or caller.key is None:
            yield
            return
        self._running[task] = caller.key
        try:
            yield
        finally:
            del self._running[task]

    async def cut_revoked(self) -> None:
        """Until cancelled. An answer that is cut has no end mark, so it does not look complete."""
        while True:
            await asyncio.sleep(self._settings.revoked_s)
            now = time.time()
            for task, record in list(self._running.items()):
                if not self.keys.holds(record, now):
                    task.cancel()
