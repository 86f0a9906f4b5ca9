"""`audit` over state folders as real nodes write them: what is told, how it looks, and what no one may read in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import audit_facts, audit_sections
from tests.helpers.verbs import InProcess, Ran
from transport import identity
from transport.identity import ClusterAuthority, Credentials
from transport.tokens import parse_token
from transport.types import Address
from vramancer_cli.runtime import enrolment, run_file
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.trust_records import OwnRemoval
from vramancer_cli.serving import keys
from vramancer_cli.telemetry import security_log
from vramancer_cli.telemetry.security import Event, Kind

DAY = re.compile(r"\b20\d\d-\d\d-\d\d\b")
NOW = time.time()
ELM, OAK = "e1" * 16, "0a" * 16


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(tmp_path, monkeypatch, capsys)


@pytest.fixture
def head(tmp_path: Path) -> Registrar:
    """A master's folder: two nodes were let in, one of them removed; one token is open, one used; two keys."""
    folder = StateFolder(tmp_path)
    _, authority = enrolment.found_cluster("tower", folder, NOW)
    registrar = Registrar(folder, authority)
    single, _ = registrar.invite(reusable=False, hours=1)
    registrar.invite(reusable=True, hours=2)
    registrar.redeem(parse_token(single).secret, ELM, NOW)
    registrar.admit(OAK, "code in slot 4", NOW)
    registrar.named(OAK, "attic")
    registrar.remove(ELM)
    keys.add(tmp_path, "laptop", "user", NOW)
    keys.add(tmp_path, "grafana", "metrics", NOW - 10 * 86400, days=3)
    return registrar


@contextmanager
def running(folder: Path) -> Iterator[RunRecord]:
    """A process that stands for the node."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        record = RunRecord(
            process.pid, psutil.Process(process.pid).create_time(), "http://127.0.0.1:5000", 5001, "head"
        )
        run_file.write(folder, record)
        try:
            yield record
        finally:
            process.kill()


def opened(folder: Path, at_s: float) -> None:
    """As a head notes it when it starts."""
    api = ("127.0.0.1:5000", "[::1]:5000")
    security_log.append(
        folder,
        [
            Event(Kind.API_OPENED, at_s, listens=api, speaks="https and http", open_to="this machine"),
            Event(Kind.NODE_PORT_OPENED, at_s, listens=("0.0.0.0:5001", "[::]:5001"), open_to="nodes and pairing"),
            Event(Kind.ANNOUNCED, at_s),
        ],
    )


def block(ran: Ran, title: str) -> str:
    """A section of the page."""
    lines = ran.out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    end = next((place for place in range(start + 1, len(lines)) if not lines[place].startswith(" ")), len(lines))
    return "\n".join(lines[start:end])


def test_who_was_let_in_how_and_who_is_not_any_more(head: Registrar, audit: InProcess) -> None:
    ran = audit("audit")
    assert ran.code == 0 and ran.err == ""
    nodes = block(ran, "Nodes let in").splitlines()
    [elm] = [line for line in nodes if ELM[:8] in line]
    [oak] = [line for line in nodes if OAK[:8] in line]
    assert f"token {head.tokens[0].id}" in elm and len(DAY.findall(elm)) == 2 and "not joined yet" in elm
    assert "attic" in oak and "code in slot 4" in oak and len(DAY.findall(oak)) == 1, "the other was removed"
    tokens = block(ran, "Open join tokens")
    assert head.tokens[1].id in tokens and "many machines" in tokens
    assert head.tokens[0].id not in tokens, "it is used"
    api_keys = block(ran, "API keys").splitlines()
    assert [line for line in api_keys if "laptop" in line and "it is revoked" in line and "ended" not in line]
    assert [line for line in api_keys if "grafana" in line and "metrics" in line and "ended" in line]
    assert "API key laptop was added, role user" in block(ran, "Last 2 events")


def test_the_head_says_who_it_is_and_who_may_look(head: Registrar, tmp_path: Path, audit: InProcess) -> None:
    own = block(audit("audit"), "This node")
    assert "master of the cluster 'tower'" in own
    assert "0700: for its owner only" in own
    tmp_path.chmod(0o755)
    (tmp_path / "authority.pem").chmod(0o644)
    opened_up = block(audit("audit"), "This node")
    assert "0755: open to other users, and in it authority.pem" in " ".join(opened_up.split())
    assert json.loads(audit("audit", "--json").out)["node"]["folder_private"] is False


def test_what_is_exposed_while_it_runs_and_what_was_when_it_does_not(
    head: Registrar, tmp_path: Path, audit: InProcess
) -> None:
    opened(tmp_path, NOW - 86400)
    before = block(audit("audit"), "Exposed")
    assert before.startswith("Exposed: nothing, no node runs. Last start, ")
    with running(tmp_path) as record:
        unknown = block(audit("audit"), "Exposed since")
        assert "http://127.0.0.1:5000" in unknown and "5001" in unknown and "0.0.0.0" not in unknown, "not yesterday's"
        opened(tmp_path, record.create_time_s + 1)
        now = block(audit("audit"), "Exposed since")
    for words in (
        "127.0.0.1:5000 [::1]:5000", "HTTPS and plain HTTP; every user and program of this machine, no key asked",
        "0.0.0.0:5001 [::]:5001", "TLS 1.3; nodes of the cluster; machines with a code or a token", "mDNS",
    ):  # fmt: skip
        assert words in " ".join(now.split())


def test_json_is_complete_and_opens_nothing(head: Registrar, tmp_path: Path, audit: InProcess) -> None:
    opened(tmp_path, NOW)
    ran = audit("audit", "--json", "--events", "1")
    found: dict[str, Any] = json.loads(ran.out)
    assert ran.code == 0
    assert set(found) == {"node", "admitted", "removed", "tokens", "keys", "exposed", "events", "problems"}
    assert (found["node"]["role"], found["node"]["cluster"]) == ("head", "tower")
    assert [(entry["node"], entry["removed_s"] is None) for entry in found["admitted"]] == [(ELM, False), (OAK, True)]
    assert [token["id"] for token in found["tokens"]] == [head.tokens[1].id]
    assert [(key["name"], key["ended"]) for key in found["keys"]] == [("laptop", False), ("grafana", True)]
    assert found["exposed"]["running"] is False and found["exposed"]["mdns"] is True
    assert found["exposed"]["api"]["listens"] == ["127.0.0.1:5000", "[::1]:5000"]
    assert len(found["events"]) == 1
    for record in keys.read(tmp_path):
        assert record.signing not in ran.out and record.digest not in ran.out
    assert all(token.digest not in ran.out for token in head.tokens)
    assert "PRIVATE" not in ran.out and "key_pem" not in ran.out


def worker_of(folder: Path) -> Credentials:
    authority, key = ClusterAuthority.create("home", NOW), identity.make_key()
    pem = identity.to_pem(authority.issue(identity.make_request(key), NOW))
    own = Credentials(
        identity.node_id_of_key(key), "[red]attic[/]", "home", "b" * 32, key, pem, authority.certificate_pem
    )
    StateFolder(folder).save_credentials(own)
    StateFolder(folder).save_head_addresses([Address("10.0.0.5", 5001), Address("fd00::1", 5001)])
    return own


def test_a_worker_shows_what_it_knows(tmp_path: Path, audit: InProcess) -> None:
    own = worker_of(tmp_path)
    ran = audit("audit")
    mine = block(ran, "This node")
    assert "worker of the cluster 'home'" in mine and own.node_id in mine and "10.0.0.5:5001, [fd00::1]:5001" in mine
    assert "[red]attic[/]" in mine, "no name is markup"
    assert "Nodes let in" not in ran.out and "Open join tokens" not in ran.out


def test_one_that_was_removed_says_so(tmp_path: Path, audit: InProcess) -> None:
    worker_of(tmp_path)
    StateFolder(tmp_path).forget_membership(OwnRemoval("home", NOW))
    assert "none: it was removed from 'home'" in audit("audit").out


def test_a_machine_of_no_cluster(audit: InProcess) -> None:
    ran = audit("audit")
    assert ran.code == 0
    assert "none: it belongs to no cluster" in ran.out


def test_a_broken_file_is_named_and_hides_nothing_else(head: Registrar, tmp_path: Path, audit: InProcess) -> None:
    (tmp_path / "admitted.json").write_text("[{")
    (tmp_path / "keys.json").write_text("{}")
    ran = audit("audit")
    assert ran.code == 1
    flat = "".join(ran.out.split())
    assert "admitted.jsonisbroken" in flat and "keys.jsonisbroken" in flat
    assert ELM[:8] in block(ran, "Nodes let in"), "the removals are in another file"
    as_json = audit("audit", "--json")
    assert as_json.code == 1 and len(json.loads(as_json.out)["problems"]) == 2


def test_the_page_fits_80_columns_and_no_name_commands_the_terminal(
    head: Registrar, tmp_path: Path, audit: InProcess
) -> None:
    head.named(OAK, "\x1b[2J\u202e" + "x" * 36)
    opened(tmp_path, NOW)
    ran = audit("audit")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out and "\u202e" not in ran.out
    assert "code in slot 4" in " ".join(ran.out.split()), "the longest name pushes nothing out"


@pytest.mark.parametrize(("count", "shown"), [("0", 0), ("2", 2), ("5", 5), ("100", 6)])
def test_so_many_events(count: str, shown: int, tmp_path: Path, audit: InProcess) -> None:
    for number in range(6):
        security_log.append(tmp_path, [Event(Kind.WRONG_KEY, NOW + number)])
    assert audit("audit", "--events", count).out.count("a wrong API key") == shown


def test_wrong_use_is_2(audit: InProcess) -> None:
    for wrong in ("-1", "x", "100001"):
        ran = audit("audit", "--events", wrong)
        assert ran.code == 2 and len(ran.error_lines) == 1 and "--events" in ran.err


def test_times_that_are_none_break_nothing(tmp_path: Path) -> None:
    security_log.append(tmp_path, [Event(Kind.WRONG_KEY, 1e11 - 1)])
    assert [event.kind for event in audit_facts.read(tmp_path, NOW, 9).events] == [Kind.WRONG_KEY]
    assert audit_sections._time(1e300) == audit_sections._time(-1e18) == "?"
