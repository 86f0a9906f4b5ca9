"""The records of trust, as the small verbs read them: what the registrar wrote, and nothing that is broken."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transport import identity
from transport.identity import ClusterAuthority
from transport.tokens import parse_token
from transport.types import Address
from vramancer_cli.runtime import trust_records as records
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.trust_records import Member, OwnRemoval, TokenUse
from vramancer_cli.runtime.whole_file import StateFolderError

NOW = 1_800_000_000.0
AUTHORITY = ClusterAuthority.create("home", time.time())
ELM, OAK = "e" * 32, "0a" * 16
READERS = {
    records.TOKENS_FILE: records.read_tokens,
    records.ADMITTED_FILE: records.read_admissions,
    records.REVOKED_FILE: records.read_removals,
    records.OWN_REMOVAL_FILE: records.read_own_removal,
    records.CREDENTIALS_FILE: records.read_member,
    records.HEAD_FILE: records.read_head_places,
}


def test_what_the_registrar_wrote_is_read_as_it_was(tmp_path: Path) -> None:
    registrar = Registrar(StateFolder(tmp_path), AUTHORITY, lambda: NOW)
    reusable, _ = (registrar.invite(reusable=how, hours=2)[0] for how in (True, False))
    registrar.redeem(parse_token(reusable).secret, ELM, NOW + 1)
    registrar.admit(OAK, "code in slot 4", NOW + 2)
    registrar.named(OAK, "attic")
    registrar.remove(ELM)
    assert records.read_tokens(tmp_path) == tuple(registrar.tokens)
    assert records.read_tokens(tmp_path)[0].last_uses == (TokenUse(ELM, NOW + 1),)
    assert records.read_admissions(tmp_path) == tuple(registrar.admissions)
    assert records.read_removals(tmp_path) == tuple(registrar.removals)


def test_who_a_node_is_is_read_without_its_key(tmp_path: Path) -> None:
    folder, own = StateFolder(tmp_path), AUTHORITY.enrol_head("tower", identity.make_key(), time.time())
    folder.save_credentials(own)
    folder.save_head_addresses([Address("10.0.0.5", 5001), Address("fd00::1", 5001)])
    member = records.read_member(tmp_path)
    assert member == Member(own.node_id, "tower", "home", own.head)
    assert records.read_head_places(tmp_path) == ("10.0.0.5:5001", "[fd00::1]:5001")
    folder.forget_membership(OwnRemoval("home", NOW))
    assert records.read_member(tmp_path) is None
    assert records.read_own_removal(tmp_path) == OwnRemoval("home", NOW)


@pytest.mark.parametrize("name", READERS)
def test_no_file_is_nothing_and_a_broken_one_is_told_and_stays(name: str, tmp_path: Path) -> None:
    assert not READERS[name](tmp_path)
    for broken in ("", "[{", "7", "[7]", '{"at_s":1}', "[" * 100_000, '[{"node":7,"at_s":"x"}]', "\udcff", "[[1,2]]"):
        (tmp_path / name).write_bytes(broken.encode("utf-8", "surrogateescape"))
        with pytest.raises(StateFolderError, match="is broken"):
            READERS[name](tmp_path)
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": 7}, {"made_s": True}, {"ends_s": "x"}, {"reusable": 1}, {"use_count": 1.5}, {"last_uses": {}},
        {"ends_s": float("nan")}, {"made_s": 10**400}, {"last_uses": [{"node": ELM}]},
    ],
)  # fmt: skip
def test_a_token_of_another_form_is_broken(changed: dict[str, object], tmp_path: Path) -> None:
    whole = {"digest": "ab" * 32, "made_s": NOW, "ends_s": NOW, "reusable": False, "use_count": 0, "last_uses": []}
    (tmp_path / records.TOKENS_FILE).write_text(json.dumps([whole]))
    assert records.read_tokens(tmp_path)[0].id == "abababab"
    (tmp_path / records.TOKENS_FILE).write_text(json.dumps([whole | changed]))
    with pytest.raises(StateFolderError, match="is broken"):
        records.read_tokens(tmp_path)


def test_it_needs_only_the_standard_library() -> None:
    program = (
        "import sys; import vramancer_cli.runtime.trust_records; import vramancer_cli.telemetry.security_log; "
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    heavy = {"msgspec", "cryptography", "aiohttp", "structlog", "psutil", "typer", "rich", "torch"}
    assert "vramancer_cli" in ran.stdout.split() and heavy.isdisjoint(ran.stdout.split())
