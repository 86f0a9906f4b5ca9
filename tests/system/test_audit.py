"""A real head through the whole life of trust, and then: nothing that it wrote down holds any secret that was used."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.helpers import leaks
from tests.helpers.api_trust import bearer, signed
from tests.helpers.cluster import hello_of, open_node
from tests.helpers.leaks import Secret
from transport.errors import PairingError
from transport.identity import Credentials, make_key
from transport.joining import pair
from transport.messages import DeviceLoad, Join, NodeLoad, Ping, Pong, Refused, Removed, Welcome
from transport.requesting import redeem, renew
from transport.tokens import SECRET_BYTES, Token, TokenError, parse_token
from transport.types import Address, DeviceFacts, NodeFacts, OfferedDevice, Versions
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.enrolment import enrol, enrol_by_token
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.serving import keys
from vramancer_cli.serving.client import ApiClient
from vramancer_cli.telemetry import security_log
from vramancer_cli.telemetry.security import Event, Kind

START_S = 90.0
WORDS = (Kind.ADMITTED, Kind.WRONG_CODE, Kind.CODE_NOT_OPEN, Kind.WRONG_TOKEN, Kind.JOINED, Kind.RENEWED, Kind.REMOVED)
KINDS = {
    *WORDS, Kind.TURNED_AWAY, Kind.COPY_REFUSED, Kind.TOKEN_MADE, Kind.ADMIN_ASKED, Kind.KEY_ADDED, Kind.KEY_REVOKED,
    Kind.KEY_ENDED, Kind.WRONG_KEY, Kind.REFUSED, Kind.API_OPENED, Kind.NODE_PORT_OPENED, Kind.ANNOUNCED,
}  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("VRM_")} | more


@dataclass
class Head:
    """A real `vramancer start --master` that wants a key of everybody; `used` is every secret that came up."""

    folder: Path
    api_token: str = field(default_factory=lambda: secrets.token_hex(24))
    used: list[Secret] = field(default_factory=list)
    public: set[str] = field(default_factory=set)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.folder / "head"

    @property
    def log(self) -> str:
        return (self.folder / "err.log").read_text(errors="replace")

    def start(self) -> None:
        """Its words for a person, the pairing code among them, go to another file than its log."""
        command = [sys.executable, "-m", "vramancer_cli", "start", "--master", "--port", "0", "--node-port", "0"]
        arguments = ["--name", "head", "--log-json", "--state-dir", str(self.state)]
        with (self.folder / "out.log").open("ab") as out, (self.folder / "err.log").open("ab") as err:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env=environment(VRM_API_TOKEN=self.api_token, OMP_NUM_THREADS="1"),
            )  # fmt: skip
        until = time.monotonic() + START_S
        while "join" not in (self.folder / "out.log").read_text():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def place(self) -> Address:
        record = run_file.read(self.state)
        assert record is not None
        return Address("127.0.0.1", record.node_port)

    @property
    def client(self) -> ApiClient:
        record = run_file.read(self.state)
        assert record is not None
        return ApiClient(record.api_url, self.api_token)

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vramancer_cli", *arguments, "--state-dir", str(self.state)]
        wide = environment(COLUMNS="200", VRM_API_TOKEN=self.api_token)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=wide, stdin=subprocess.DEVNULL)

    def ask(self, target: str, method: str = "GET", **headers: str) -> int:
        """The status of a reply."""
        connection = http.client.HTTPConnection(urlsplit(self.client.url).netloc, timeout=10)
        try:
            connection.request(method, target, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    # --- secrets ------------------------------------------------------------------------------------------------

    def code(self) -> str:
        return self.keep_code(self.client.invite()[0])

    def keep_code(self, text: str) -> str:
        self.used.append(leaks.code(text))
        return text

    def token(self) -> Token:
        made = parse_token(self.client.make_token(reusable=False, hours=1)["token"])
        return self.keep_token(made)

    def keep_token(self, token: Token) -> Token:
        self.used.append(Secret("token", token.secret))
        self.used.append(leaks.key("token's text", str(token).rpartition("-")[2]))
        return token

    def keep_key(self, text: str) -> str:
        self.used.append(leaks.key("API key", text.removeprefix(keys.PREFIX)))
        return text

    def keep_pem(self, what: str, pem: bytes) -> None:
        """The private number of a key, and the lines of its file."""
        found = load_pem_private_key(pem, None)
        assert isinstance(found, EllipticCurvePrivateKey)
        self.used.append(Secret(what, found.private_numbers().private_value.to_bytes(32, "big")))
        self.used.append(Secret(what, found.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())))
        self.used += [leaks.key(what, line) for line in pem.decode().splitlines() if line and "--" not in line]

    def keep_node(self, own: Credentials) -> Credentials:
        self.keep_pem(f"the key of {own.name}", own.key_pem)
        self.public |= {own.node_id, own.node_id[:8]}
        return own


@contextmanager
def started(folder: Path) -> Iterator[Head]:
    head = Head(folder)
    try:
        head.start()
        yield head
    finally:
        head.stop()


def wrong(code: str) -> str:
    return "-".join((*code.split("-")[:3], "zebra" if not code.endswith("zebra") else "zipper"))


# --- the life -------------------------------------------------------------------------------------------------------


async def joins(head: Head, folder: Path) -> tuple[Credentials, Credentials]:
    """One machine by the code that the head showed, one by a token; and all that does not open."""
    shown = re.search(r"--code (\S+)", (head.folder / "out.log").read_text())
    assert shown is not None
    by_code = await enrol([head.place], head.keep_code(shown[1]), "attic", StateFolder(folder / "attic"))
    second = head.code()
    for guess in (head.keep_code(wrong(second)), wrong(second), shown[1]):
        with pytest.raises(PairingError):
            await pair([head.place], guess, name="x", key_pem=make_key())
    token = head.token()
    by_token = await enrol_by_token([head.place], token, "cellar", StateFolder(folder / "cellar"))
    guessed = head.keep_token(Token(token.authority_digest, secrets.token_bytes(SECRET_BYTES)))
    for bad in (token, guessed):
        with pytest.raises(TokenError):
            await redeem([head.place], bad, name="x", key_pem=make_key())
    await renew([head.place], by_token)
    return head.keep_node(by_code), head.keep_node(by_token)


def facts(own: Credentials, name: str) -> NodeFacts:
    torch, transformers = (version(package).partition("+")[0] for package in ("torch", "transformers"))
    device = OfferedDevice(DeviceFacts("cpu", 0, "a processor", 1, 1), 1)
    return NodeFacts(own.node_id, name, "Linux", (device,), (), Versions("0", torch, transformers))


async def lives(head: Head, own: Credentials) -> None:
    """It joins, a copy of its folder comes too, it is removed, and it comes back."""
    async with open_node(own, hello_of(own)) as node:
        first = await node.endpoint.dial_control([head.place], own.head)
        await first.send(Join(facts(own, "attic")))
        assert isinstance(await first.receive(), Welcome)

        async def answering() -> bool:
            """Until the head says that it was removed."""
            while not isinstance(message := await first.receive(), Removed):
                if isinstance(message, Ping):
                    await first.send(Pong(message.number, NodeLoad((DeviceLoad(0, 0),), 0)))
            return True

        living = asyncio.create_task(answering())
        copy = await node.endpoint.dial_control([head.place], own.head)
        await copy.send(Join(facts(own, "copy")))
        assert isinstance(await copy.receive(), Refused)
        removed = await asyncio.to_thread(head.verb, "nodes", "remove", own.node_id)
        assert removed.returncode == 0, removed.stderr
        assert await asyncio.wait_for(living, 10)
        back = await node.endpoint.dial_control([head.place], own.head)
        await back.send(Join(facts(own, "attic")))
        assert isinstance(await back.receive(), Removed)


def uses_keys(head: Head) -> None:
    """Keys of every kind, good, wrong, mistyped, of another role, ended, replayed, revoked; foreign hosts and pages."""
    laptop, grafana = (
        head.keep_key(head.verb("keys", "add", name, "--role", role).stdout.strip())
        for name, role in (("laptop", "user"), ("grafana", "metrics"))
    )
    ended = head.keep_key(keys.add(head.state, "old", "user", time.time() - 10 * 86400, days=1))
    for record in keys.read(head.state):
        head.used += [Secret("signing secret", bytes.fromhex(record.signing))]
        head.public |= {record.id}
    models = "/v1/models"
    once = signed(laptop, "GET", models)
    typo = laptop[:-1] + ("a" if laptop[-1] != "a" else "b")
    password = head.keep_key(secrets.token_urlsafe(24))
    assert head.ask(models, **bearer(laptop)) == 200
    assert head.ask(models, **once) == 200
    assert head.ask(models, **once) == 401, "a replay"
    assert head.ask(models, **bearer(grafana)) == 403
    assert head.ask(models, **bearer(laptop), Host="evil.example") == 403
    assert head.ask(models, "POST", **bearer(laptop), Origin="https://evil.example") == 403
    for shown in (ended, typo, password, head.keep_key(keys.make_key())):
        assert head.ask(models, **bearer(shown)) == 401
    assert head.ask(models, **{"X-Api-Key": password}) == 401
    assert head.ask(models + "?api_key=" + password) == 401
    assert head.verb("keys", "revoke", "grafana").returncode == 0


def keeps_what_it_has(head: Head) -> None:
    """The head's own secrets, and what of it is public."""
    head.used.append(leaks.Secret("VRM_API_TOKEN", head.api_token.encode(), 6))
    authority = (head.state / "authority.pem").read_text()
    pem = re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n", authority, re.DOTALL)
    assert pem is not None
    head.keep_pem("the authority's key", pem[0].encode())
    own = StateFolder(head.state).credentials()
    assert own is not None
    head.keep_node(own)
    head.public |= {own.cluster_id, own.cluster_id[:16], own.cluster_id.upper()}
    tokens: list[dict[str, Any]] = json.loads((head.state / "tokens.json").read_text())
    head.public |= {token["digest"][:8] for token in tokens}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, dict[str, str]]]:
    """The head after its life, ended, and every text that it and `audit` have written, by what it is."""
    folder = tmp_path_factory.mktemp("life")
    with started(folder) as head:
        attic, _ = asyncio.run(joins(head, folder))
        asyncio.run(lives(head, attic))
        uses_keys(head)
        running = head.verb("audit", "--events", "1000")
    texts = {
        "audit while it runs": running.stdout + running.stderr,
        "audit": head.verb("audit", "--events", "1000").stdout,
        "audit --json": head.verb("audit", "--json", "--events", "1000").stdout,
        "security.jsonl": (head.state / security_log.FILE).read_text(),
        "the log": head.log,
    }
    keeps_what_it_has(head)
    yield head, texts


def test_every_step_is_in_the_log(life: tuple[Head, dict[str, str]]) -> None:
    head, _ = life
    events = security_log.read(head.state, 1000)
    assert {event.kind for event in events} == KINDS - {Kind.EVENTS_LOST}
    admitted = [event for event in events if event.kind == Kind.ADMITTED]
    assert [event.invitation.split()[0] for event in admitted] == ["code", "token"]
    assert {event.address for event in events if event.kind in WORDS[:4]} == {"127.0.0.1"}
    assert {event.why for event in events if event.kind == Kind.REFUSED} == {"replay", "role", "host", "origin"}
    assert [event.tries for event in events if event.kind == Kind.WRONG_CODE] == [1, 2]
    assert [event.key for event in events if event.kind == Kind.KEY_ENDED] == ["old"]
    assert {event.action for event in events if event.kind == Kind.ADMIN_ASKED} == {"invite", "token", "remove"}
    [api] = [event for event in events if event.kind == Kind.API_OPENED]
    assert (api.open_to, api.speaks, api.key) == ("keys", "https and http", "VRM_API_TOKEN")
    assert (head.state / security_log.FILE).stat().st_mode & 0o777 == 0o600


def test_the_audit_tells_it_with_and_without_a_running_node(life: tuple[Head, dict[str, str]]) -> None:
    _, texts = life
    while_it_ran, since = texts["audit while it runs"], texts["audit"]
    assert "Exposed since" in while_it_ran and "no node runs" in since
    for page in (while_it_ran, since):
        for words in ("was let in by code in slot", "token", "laptop", "0.0.0.0:", "mDNS", "0700: for its owner only"):
            assert words in page
        assert "API key grafana was revoked" in page
        assert "grafana" not in page.partition("\nAPI keys\n")[2].partition("\nExposed")[0]
    found = json.loads(texts["audit --json"])
    assert len(found["admitted"]) == 2 and len(found["removed"]) == 1 and not found["problems"]
    assert [key["name"] for key in found["keys"]] == ["laptop", "old"]


@pytest.mark.parametrize("where", ["audit while it runs", "audit", "audit --json", "security.jsonl", "the log"])
def test_no_secret_is_in_what_was_written(where: str, life: tuple[Head, dict[str, str]]) -> None:
    head, texts = life
    text = texts[where]
    assert len(text) > 500, "there is something to look into"
    assert leaks.leaks(leaks.scrubbed(text, head.public), head.used) == set()


def test_all_kinds_of_secrets_were_looked_for(life: tuple[Head, dict[str, str]]) -> None:
    head, _ = life
    whats = [secret.what for secret in head.used]
    for what, least in (
        ("pairing code", 3), ("token", 2), ("API key", 5), ("signing secret", 3), ("VRM_API_TOKEN", 1),
        ("the authority's key", 3), ("the key of head", 3), ("the key of attic", 3), ("the key of cellar", 3),
    ):  # fmt: skip
        assert whats.count(what) >= least, what


def test_what_is_looked_for_would_be_found(life: tuple[Head, dict[str, str]]) -> None:
    """Every form of every secret, a few characters of it put into what was really written."""
    head, texts = life
    clean = leaks.scrubbed(texts["audit --json"], head.public)
    for secret in head.used:
        for form, length in secret.forms():
            if len(form) < length:
                continue
            middle = (len(form) - length) // 2
            planted = clean + '"' + form[middle : middle + length] + '"'
            assert leaks.leaks(planted, [secret]), (secret.what, length)


def test_a_secret_that_is_written_by_mistake_is_found_where_it_is_written(life: tuple[Head, dict[str, str]]) -> None:
    head, _ = life
    line = json.dumps({"event": Event(Kind.WRONG_KEY, 0.0).kind, "shown": head.api_token[:6]})
    assert leaks.leaks(leaks.scrubbed(line, head.public), head.used) == {f"VRM_API_TOKEN: {head.api_token[:6]}"}
