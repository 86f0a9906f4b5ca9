"""The composition root: turns settings into links, a coordinator or a worker, a registry and an API, and runs them.

Every task of a node lives in one TaskGroup here; when one fails or a signal comes, all of them end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import vramancer_cli
from transport.bulk import TlsBulkLink
from transport.contracts import BulkSource, ControlHandler, ControlLink, DataSink, Received
from transport.discovery import announce, local_addresses
from transport.endpoint import Endpoint
from transport.errors import PortBusyError, TransportError
from transport.identity import ClusterAuthority, Credentials
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Hello, ModelRef
from transport.pairing import CLUSTER_PREFIX_DIGITS, PairingDesk
from transport.types import Address, NodeFacts, NodeId, OfferedDevice, Peer, Versions
from vramancer_cli.engine.torch_engine import open_engines
from vramancer_cli.errors import UsageError
from vramancer_cli.models import catalog
from vramancer_cli.models.activation_format import FEATURES
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.quantisation import weight_format
from vramancer_cli.models.weight_files import WeightFile
from vramancer_cli.planning.facts import PlanSettings
from vramancer_cli.runtime import enrolment, kept_gguf, kept_weights, run_file, store
from vramancer_cli.runtime.admin import HeadAdmin, WorkerAdmin
from vramancer_cli.runtime.bulk_pace import BulkPace
from vramancer_cli.runtime.checkpoints import FetchedCheckpoints, OwnCheckpoints
from vramancer_cli.runtime.claim import claimed
from vramancer_cli.runtime.contracts import Admin
from vramancer_cli.runtime.coordinator import Coordinator
from vramancer_cli.runtime.device_thread import DeviceThread
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.head_finder import HeadFinder
from vramancer_cli.runtime.hub import Progress
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.registry import Registry
from vramancer_cli.runtime.renewal import Renewal
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.tasks import task_group
from vramancer_cli.runtime.weight_source import WeightSource
from vramancer_cli.runtime.worker import RENEWAL_LOOK_S, Worker
from vramancer_cli.serving.app import ApiServer, create_app
from vramancer_cli.serving.exposure import exposed, server_settings
from vramancer_cli.serving.https import ApiCertificate
from vramancer_cli.serving.key_ring import TOKEN_NAME
from vramancer_cli.settings import NodeSettings, Role, parse_address
from vramancer_cli.telemetry import log
from vramancer_cli.telemetry.recorder import Recorder
from vramancer_cli.telemetry.security import Kind
from vramancer_cli.telemetry.security_log import SecurityLog

DEFAULT_CONTEXT_TOKENS = 4096
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeReady:
    """What a person is told once the node is up. `code` only on a head; `waiting_for` "" when nothing is missing.

    `addresses`: where others may reach the node port, best first.
    """

    api_url: str
    node_port: int
    addresses: tuple[Address, ...]
    role: Role
    cluster: str
    code: str | None
    waiting_for: str


OnReady = Callable[[NodeReady], None]


async def _at_once() -> None:
    """Nothing is to be done before the end."""


def run(settings: NodeSettings, on_ready: OnReady, on_download: Progress = store.silent) -> None:
    """Run a node until SIGINT or SIGTERM. Raises what the user should read (errors.SHOWN).

    `on_download` is told, on another thread, how a model comes from the hub.
    """
    log.configure(json=settings.log_json)
    parting = _Parting()
    is_head = settings.role == "head"
    node = partial(_head, on_download=on_download) if is_head else partial(_worker, parting=parting)
    with claimed(settings.state_folder):
        asyncio.run(_until_signal(node, settings, on_ready, parting))


@dataclass(slots=True)
class _Parting:
    """What a node does, once it runs, before it ends: a worker hands its layers over."""

    leave: Callable[[], Awaitable[None]] = field(default=_at_once)


async def _until_signal(
    node: Callable[[NodeSettings, OnReady], Coroutine[None, None, None]],
    settings: NodeSettings,
    on_ready: OnReady,
    parting: _Parting,
) -> None:
    """Let the node part and end in order when a person or the system says so; at once when they say it again."""
    running = asyncio.create_task(node(settings, on_ready), name="node")
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    def cancel() -> None:  # once: a second cancel would interrupt the ending in order
        if not running.cancelling():
            running.cancel()

    def end() -> None:
        if leaving:
            cancel()
        else:
            leaving.append(asyncio.ensure_future(parting.leave()))
            leaving[0].add_done_callback(lambda _: cancel())

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, end)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(end))
    with contextlib.suppress(asyncio.CancelledError):
        await running
    for task in leaving:
        task.cancel()
        await asyncio.wait({task})


# --- the head -------------------------------------------------------------------------------------------------------


async def _head(settings: NodeSettings, on_ready: OnReady, on_download: Progress) -> None:
    folder = StateFolder(settings.state_folder)
    credentials, authority = enrolment.found_cluster(settings.name, folder, time.time())
    desk, events = PairingDesk(), SecurityLog(folder.path)
    registrar = Registrar(folder, authority, events=events)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(events.close)
        devices = await _devices(stack, settings)
        chosen = await _choose_model(stack, settings, devices[0], on_download)
        inbox = _Inbox()
        entrance = _Entrance(desk, authority, registrar)
        source = _weight_source(stack, settings, chosen, inbox)
        endpoint = await _endpoint(stack, settings, credentials, inbox.accept, inbox, entrance, source)
        generation = Generation(
            chosen.facts.ref.name,
            chosen.folder,
            chosen.context_tokens,
            int(time.time()),
            inbox.activity,
            prefix_cache=settings.prefix_cache,
            draft=settings.draft,
        )
        coordinator = inbox.coordinator = Coordinator(
            facts=_facts(settings, credentials, devices, endpoint.port),
            cluster=credentials.cluster,
            model=chosen.facts,
            settings=PlanSettings(
                dtype=settings.dtype,
                context_tokens=chosen.context_tokens,
                quantize=weight_format(settings.quantize, chosen.facts.is_stored_packed),
                kv_cache=settings.kv_cache,
                activations=settings.activations,
            ),
            folder=chosen.folder,
            devices=devices,
            generation=generation,
            share_status=lambda: admin.share(),
            registrar=registrar,
        )
        admin = HeadAdmin(coordinator, generation, desk, credentials, registrar)
        api = await _api(stack, settings, Registry([generation]), admin, events, authority)
        admin.api_url = api.url
        events.note(Kind.NODE_PORT_OPENED, listens=_places(endpoint), open_to="nodes and pairing")
        await stack.enter_async_context(await announce(_announced(credentials, endpoint.port, api.port)))
        events.note(Kind.ANNOUNCED)
        _write_run_file(stack, settings, api.url, endpoint.port)
        invitation = await admin.invite()
        addresses = local_addresses(endpoint.port)
        on_ready(NodeReady(api.url, endpoint.port, addresses, "head", credentials.cluster, invitation.code, ""))
        async with task_group() as group:
            group.create_task(_keep_young(folder, authority, credentials, endpoint), name="keep-young")
            await coordinator.run(endpoint)


async def _keep_young(
    folder: StateFolder, authority: ClusterAuthority, credentials: Credentials, endpoint: Endpoint
) -> None:
    """The head's own certificate, while it runs: it needs to ask nobody."""
    renewal = Renewal(credentials, folder.save_credentials, endpoint.renew)
    while True:
        await asyncio.sleep(RENEWAL_LOOK_S)
        await renewal.sign_when_due(authority)


@dataclass(frozen=True, slots=True)
class _Entrance:
    """What lets machines in, on a head."""

    desk: PairingDesk
    authority: ClusterAuthority
    registrar: Registrar


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The model that a head was told to serve."""

    folder: Path
    facts: ModelFacts
    files: tuple[WeightFile, ...]
    context_tokens: int


def _weight_source(
    stack: contextlib.AsyncExitStack, settings: NodeSettings, chosen: _Chosen, inbox: _Inbox
) -> WeightSource:
    """What workers get the weights from that they lack."""
    digest, pace = chosen.facts.ref.digest, BulkPace(inbox.is_busy)
    source = WeightSource(chosen.folder, digest, chosen.files, _shelf(settings), pace)
    stack.callback(source.close)
    return source


async def _choose_model(
    stack: contextlib.AsyncExitStack, settings: NodeSettings, first: LocalDevice, on_download: Progress
) -> _Chosen:
    engine, device = first.engine, first.executor
    model = await _as_folder(stack, settings, first)
    source, location, folder = await store.locate_choice(model, _shelf(settings), on_download)
    name = folder.name if source == "folder" else location
    ref = ModelRef(name, source, location, await device.run(lambda: engine.digest(folder)))
    facts: ModelFacts = await device.run(lambda: engine.model_facts(folder, ref))
    facts.check_cache(settings.kv_cache)
    asked_tokens = settings.context_tokens or DEFAULT_CONTEXT_TOKENS
    if settings.context_tokens and asked_tokens > facts.context_tokens:
        log.get("node").warning("the model's own context is shorter", asked=asked_tokens, context=facts.context_tokens)
    files = await device.run(lambda: engine.weight_files(folder))
    return _Chosen(folder, facts, files, min(asked_tokens, facts.context_tokens))


async def _as_folder(stack: contextlib.AsyncExitStack, settings: NodeSettings, first: LocalDevice) -> str | None:
    """`--model`; of a GGUF file, the folder that is made of it, which nobody removes while this node runs."""
    if settings.model is None or not catalog.names_gguf(settings.model):
        return settings.model
    file, shelf = Path(settings.model), kept_gguf.shelf_in(settings.cache_folder or settings.state_folder)

    def unfold() -> Path:
        return first.engine.unfold(file, shelf)

    stack.enter_context(kept_gguf.used(await first.executor.run(unfold)))
    return str(await first.executor.run(unfold))  # again: it may have been removed before it was marked as used


def _announced(credentials: Credentials, node_port: int, api_port: int) -> Peer:
    return Peer(
        cluster_id_prefix=credentials.cluster_id[:CLUSTER_PREFIX_DIGITS],
        name=credentials.cluster,
        addresses=local_addresses(node_port),
        accepts_pairing=True,
        api_port=api_port,
        version=vramancer_cli.__version__,
    )


class _Inbox:
    """Where links deliver on a head. The port must be known before the coordinator is made, so it is put in later:

    before the next await, so that no link can be here first.
    """

    coordinator: Coordinator

    async def accept(self, link: ControlLink) -> None:
        await self.coordinator.accept(link)

    def activity(self) -> None:
        self.coordinator.activity()

    def is_busy(self) -> bool:
        """Whether sequences run, or are about to; from any thread."""
        state = self.coordinator.state
        return state.running + state.waiting > 0

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.coordinator.on_frame(sender, received)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        self.coordinator.on_closed(sender, error)


# --- a worker -------------------------------------------------------------------------------------------------------


async def _worker(settings: NodeSettings, on_ready: OnReady, parting: _Parting) -> None:
    folder = StateFolder(settings.state_folder)
    credentials = folder.credentials()
    if credentials is None:
        enrolment.refuse_removed(folder)
        raise UsageError("This machine has not joined a cluster.", hint="Use 'vramancer join'.")
    given = parse_address(settings.head) if settings.head else None
    finder = HeadFinder(folder, credentials.cluster_id, given)
    events = SecurityLog(folder.path)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(events.close)
        devices = await _devices(stack, settings)

        async def dial_bulk(addresses: Sequence[Address], node: NodeId) -> TlsBulkLink:
            return await endpoint.dial_bulk(addresses, node)

        shelf = _shelf(settings)
        checkpoints = FetchedCheckpoints(devices[0], shelf, dial_bulk) if shelf else OwnCheckpoints()
        facts = partial(_facts, settings, credentials, devices)
        worker = Worker(lambda: facts(endpoint.port), devices, checkpoints)
        endpoint = await _endpoint(stack, settings, credentials, _nobody_dials_a_worker, worker)
        api = await _api(stack, settings, Registry(), WorkerAdmin(worker, credentials.cluster), events)
        events.note(Kind.NODE_PORT_OPENED, listens=_places(endpoint), open_to="nodes")
        _write_run_file(stack, settings, api.url, endpoint.port)
        addresses = local_addresses(endpoint.port)
        on_ready(NodeReady(api.url, endpoint.port, addresses, "worker", credentials.cluster, None, "the master"))
        renewal = Renewal(credentials, folder.save_credentials, endpoint.renew)
        parting.leave = worker.leave
        with enrolment.forgetting_when_removed(folder, credentials.cluster):
            await worker.stay(endpoint, finder.find, credentials.head, finder.remember, renewal)


async def _nobody_dials_a_worker(link: ControlLink) -> None:
    await link.close("This node is not the head.")


# --- parts of both --------------------------------------------------------------------------------------------------


async def _devices(stack: contextlib.AsyncExitStack, settings: NodeSettings) -> tuple[LocalDevice, ...]:
    """What this node lends, each with a thread of its own; off the loop, for drivers take their time to start."""
    engines = await asyncio.to_thread(open_engines, settings.devices, settings.memory_bytes)
    recorder, threads = Recorder(), [_thread(stack, str(engine.device_facts())) for engine in engines]
    parts = enumerate(zip(engines, threads, strict=True))
    return tuple(LocalDevice(engine, thread, position, recorder) for position, (engine, thread) in parts)


def _thread(stack: contextlib.AsyncExitStack, name: str) -> DeviceThread:
    thread = DeviceThread(name)
    stack.callback(thread.close)
    return thread


async def _endpoint(
    stack: contextlib.AsyncExitStack,
    settings: NodeSettings,
    credentials: Credentials,
    on_control: ControlHandler,
    sink: DataSink,
    entrance: _Entrance | None = None,
    bulk: BulkSource | None = None,
) -> Endpoint:
    own = (_versions(), credentials.node_id, settings.name)
    hello = Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, *own, "control", tuple(FEATURES))

    async def open_at(port: int) -> Endpoint:
        common = partial(Endpoint.open, credentials, hello, host=None, port=port, on_control=on_control, sink=sink)
        if entrance is None:  # its certificate, if it has ended, is renewed before the head is dialled
            return await common(may_have_ended=True)
        return await common(bulk=bulk, desk=entrance.desk, authority=entrance.authority, book=entrance.registrar)

    endpoint = await _or_free_port(open_at, settings.node_port, settings.node_port_given)
    stack.push_async_callback(endpoint.close)
    return endpoint


async def _api(
    stack: contextlib.AsyncExitStack,
    settings: NodeSettings,
    registry: Registry,
    admin: Admin,
    events: SecurityLog,
    authority: ClusterAuthority | None = None,
) -> ApiServer:
    """With the cluster's authority, so on the head, it speaks HTTPS too."""
    names = frozenset({platform.node().lower(), f"{platform.node().lower()}.local"})
    server = server_settings(settings, names)
    app = create_app(registry, admin, server, events)
    certificate = ApiCertificate(authority, names, _own_addresses) if authority else None
    # A head's address is what people type, so it never moves by itself; a worker's board may.
    fixed = settings.port_given or settings.role == "head"
    api = await _or_free_port(lambda port: ApiServer.start(app, settings.host, port, certificate), settings.port, fixed)
    stack.push_async_callback(api.close)
    speaks, open_to = exposed(settings.host, server, can_https=certificate is not None)
    token = TOKEN_NAME if settings.api_token else ""
    events.note(Kind.API_OPENED, listens=api.listens, speaks=speaks, open_to=open_to, key=token)
    return api


def _shelf(settings: NodeSettings) -> Path | None:
    return kept_weights.shelf_in(settings.cache_folder) if settings.cache_folder else None


def _places(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(str(address) for address in endpoint.listens)


def _own_addresses() -> list[str]:
    return [address.host for address in local_addresses(0)]


async def _or_free_port(open_at: Callable[[int], Awaitable[T]], port: int, fixed: bool) -> T:
    """At `port`, or, where nobody chose it and it is taken, at a free one."""
    try:
        return await open_at(port)
    except PortBusyError:
        if fixed:
            raise
        return await open_at(0)


def _write_run_file(stack: contextlib.AsyncExitStack, settings: NodeSettings, api_url: str, node_port: int) -> None:
    record = RunRecord.of_this_process(api_url, node_port, settings.role)
    run_file.write(settings.state_folder, record)
    stack.callback(run_file.clear, settings.state_folder, record)


def _facts(settings: NodeSettings, credentials: Credentials, devices: Sequence[LocalDevice], port: int) -> NodeFacts:
    return NodeFacts(
        node_id=credentials.node_id,
        name=settings.name,
        os=f"{platform.system()} {platform.release()}",
        devices=tuple(OfferedDevice(d.engine.device_facts(), d.engine.limit_bytes) for d in devices),
        addresses=local_addresses(port),
        versions=_versions(),
    )


def _versions() -> Versions:
    """Without the build tag: a CUDA and a CPU build of one torch version may share a plan."""
    torch, transformers = (version(name).partition("+")[0] for name in ("torch", "transformers"))
    return Versions(vramancer_cli.__version__, torch, transformers)
