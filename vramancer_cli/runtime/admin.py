"""What the API may ask of a node beyond answers: status, invitations, and who must go (Admin, see contracts)."""

from __future__ import annotations

import asyncio
import json
import random
import time

import vramancer_cli
from transport.identity import Credentials
from transport.pairing import CODE_VALID_S, PairingDesk
from transport.types import NodeId
from vramancer_cli.cluster.board import cluster_status
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import NotReadyError, UsageError
from vramancer_cli.runtime.contracts import Invitation, JoinToken
from vramancer_cli.runtime.coordinator import Coordinator
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.worker import Worker
from vramancer_cli.telemetry.cluster_trace import ClusterTrace


class HeadAdmin:
    """On the head: it knows everything."""

    def __init__(
        self,
        coordinator: Coordinator,
        generation: Generation,
        desk: PairingDesk,
        credentials: Credentials,
        registrar: Registrar | None = None,
    ) -> None:
        self._registrar = registrar or Registrar()
        self._coordinator = coordinator
        self._generation = generation
        self._desk = desk
        self._credentials = credentials
        self._started_s = asyncio.get_running_loop().time()
        self.api_url = ""

    async def status(self, *, fresh: bool = False) -> ClusterStatus:
        if fresh:
            await self._coordinator.refresh()
        return self._status()

    async def invite(self) -> Invitation:
        return Invitation(self._desk.invite(time.time(), random.SystemRandom()), CODE_VALID_S)

    async def make_token(self, *, reusable: bool, hours: float) -> JoinToken:
        text, record = await asyncio.to_thread(self._registrar.invite, reusable=reusable, hours=hours)
        return JoinToken(text, record.id, record.ends_s - record.made_s, reusable)

    async def remove(self, node: str) -> NodeId:
        return await self._coordinator.remove(node)

    async def drain(self, node: str) -> NodeId:
        return await self._coordinator.drain(node)

    async def trace(self, seconds: float) -> ClusterTrace:
        return await self._coordinator.trace(seconds)

    def share(self) -> bytes:
        """The status as the workers' boards get it."""
        return json.dumps(self._status().to_json()).encode()

    def _status(self) -> ClusterStatus:
        now = asyncio.get_running_loop().time()
        return cluster_status(
            self._coordinator.state,
            cluster=self._credentials.cluster,
            cluster_id=self._credentials.cluster_id,
            version=vramancer_cli.__version__,
            uptime_s=now - self._started_s,
            running=self._generation.running,
            waiting=self._generation.waiting,
            tokens_per_s=self._generation.rate.per_second(now),
            tokens_per_trip=self._generation.trips.tokens_per_trip,
            draft_acceptance=self._generation.trips.draft_acceptance,
            prefix_tokens=self._generation.prefix_tokens,
            trip_s=self._generation.trips.trip_s,
            api_url=self.api_url,
            now=now,
        )


class WorkerAdmin:
    """On a worker: what the head last shared."""

    def __init__(self, worker: Worker, cluster: str) -> None:
        self._worker = worker
        self._cluster = cluster

    async def status(self, *, fresh: bool = False) -> ClusterStatus:
        """`fresh` changes nothing here: only the head can ask everyone. Raises NotReadyError."""
        if not self._worker.status:
            raise NotReadyError(f"Not connected to the master of '{self._cluster}'.")
        return ClusterStatus.from_json(json.loads(self._worker.status))

    async def invite(self) -> Invitation:
        raise UsageError("Only the master can invite.", hint="Run 'vramancer invite' on the master.")

    async def make_token(self, *, reusable: bool, hours: float) -> JoinToken:
        raise UsageError("Only the master can invite.", hint="Run 'vramancer invite --token' on the master.")

    async def remove(self, node: str) -> NodeId:
        raise UsageError("Only the master can remove a node.", hint="Run 'vramancer nodes remove' on the master.")

    async def trace(self, seconds: float) -> ClusterTrace:
        hint = "Run 'vramancer trace' on the master, or with its --url."
        raise UsageError("Only the master can gather what all nodes did.", hint=hint)

    async def drain(self, node: str) -> NodeId:
        raise UsageError("Only the master can drain a node.", hint="Run 'vramancer drain' on the master.")
