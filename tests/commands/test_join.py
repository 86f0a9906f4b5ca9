from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import join
from commands.join import NothingFoundError, Target
from commands.join_token import Given
from tests.helpers.cluster import open_node
from tests.helpers.verbs import async_terminal, run_verb
from transport.pairing import PairingDesk
from transport.tokens import Token, parse_token
from vramancer_cli.errors import PairingError
from vramancer_cli.runtime import enrolment
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder


@dataclass
class Master:
    """A real node port that pairs machines."""

    where: str
    desk: PairingDesk
    registrar: Registrar

    def code(self) -> str:
        return self.desk.invite(time.time(), random.Random(7))

    def token(self, *, reusable: bool = False) -> str:
        return self.registrar.invite(reusable=reusable, hours=1)[0]


@asynccontextmanager
async def master(folder: Path) -> AsyncIterator[Master]:
    head, authority = enrolment.found_cluster("tower", StateFolder(folder), time.time())
    desk, registrar = PairingDesk(), Registrar(StateFolder(folder), authority)
    async with open_node(head, desk=desk, authority=authority, book=registrar) as node:
        yield Master(f"127.0.0.1:{node.endpoint.port}", desk, registrar)


async def test_no_terminal_and_no_code_is_one_line_and_2_at_once(tmp_path: Path) -> None:
    for arguments in ([], ["--auto-discover"], ["127.0.0.1:1"]):
        began = time.monotonic()
        ran = await run_verb(tmp_path, "join", *arguments)
        assert ran.code == 2
        assert len(ran.error_lines) == 1
        assert "--code" in ran.err
        assert time.monotonic() - began < 8, "it does not look for clusters first"


async def test_a_masters_folder_joins_nothing(tmp_path: Path) -> None:
    enrolment.found_cluster("tower", StateFolder(tmp_path), time.time())
    ran = await run_verb(tmp_path, "join", "127.0.0.1:1", "--code", "4-otter-maple-drum")
    assert ran.code == 2
    assert "itself the master" in ran.err


async def test_a_wrong_code_without_a_terminal_is_not_asked_for_again(tmp_path: Path) -> None:
    async with master(tmp_path / "head") as head:
        slot = head.code().split("-")[0]
        ran = await run_verb(tmp_path / "worker", "join", head.where, "--code", f"{slot}-zebra-zebra-zebra")
        misspelt = await run_verb(tmp_path / "worker", "join", head.where, VRM_CODE=f"{slot}-otter-mapel-drum")
    assert ran.code == misspelt.code == 4
    assert "vramancer invite" in ran.err
    assert "Did you mean 'maple'?" in misspelt.err
    assert not (tmp_path / "worker").exists()


async def test_nobody_there_is_3(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "join", "127.0.0.1:1", "--code", "4-otter-maple-drum")
    assert ran.code == 3
    assert "Traceback" not in ran.err


async def test_on_a_terminal_a_wrong_code_is_asked_for_again_and_the_right_one_joins(tmp_path: Path) -> None:
    async with master(tmp_path / "head") as head:
        code = head.code()
        async with async_terminal(tmp_path / "worker", "join", head.where, "--port", "0", "--node-port", "0") as worker:
            await asyncio.to_thread(worker.see, "Pairing code that its master shows:")
            worker.type(f"{code.split('-')[0]}-zebra-zebra-zebra\n")
            await asyncio.to_thread(worker.see, "error: ")
            await asyncio.to_thread(worker.see, "Pairing code that its master shows:")
            worker.type(f"{code}\n")
            await asyncio.to_thread(worker.see, "Joined 'tower'.")
            worker.interrupt()
            assert await asyncio.to_thread(worker.end) in (0, 130)
    credentials = StateFolder(tmp_path / "worker").credentials()
    assert credentials is not None
    assert credentials.cluster == "tower"


async def test_who_joined_needs_no_code_and_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path)
    head, _ = enrolment.found_cluster("tower", StateFolder(tmp_path / "head"), time.time())
    folder.save_credentials(head)
    monkeypatch.setattr(join, "_pair", lambda *_: pytest.fail("it paired again"))
    join.enrol_once(folder, None, Given())  # pyright: ignore[reportArgumentType]  # settings are for pairing only
    assert capsys.readouterr().err == ""
    join.enrol_once(folder, None, Given("4-otter-maple-drum"))  # pyright: ignore[reportArgumentType]
    assert "'tower'" in capsys.readouterr().err


def target(name: str) -> Target:
    return Target((), name, f"'{name}' at 192.168.1.20:5001")


def test_none_found_names_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_discover", list)
    with pytest.raises(NothingFoundError) as caught:
        join._targets(None)
    assert caught.value.exit_code == 3
    assert "vramancer join HOST" in caught.value.hint


def test_one_cluster_is_taken_without_a_question() -> None:
    one = target("desk")
    assert join._choose([one]) is one


def test_several_are_a_numbered_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    several = [target("desk"), target("attic")]
    answers = iter(["0", "x", "3", "2"])
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    assert join._choose(several) is several[1]
    shown = capsys.readouterr().err
    assert "  1  'desk' at 192.168.1.20:5001" in shown
    assert shown.count("A number from 1 to 2, please.") == 3


async def test_a_script_with_a_code_joins_the_cluster_that_it_opens(tmp_path: Path) -> None:
    """Two clusters on the network, nobody to choose: the other one refuses and learns nothing."""
    async with master(tmp_path / "other") as other, master(tmp_path / "head") as head:
        other.desk.invite(time.time(), random.Random(1))
        folder = StateFolder(tmp_path / "worker")
        targets = [join._targets(where)[0] for where in (other.where, head.where)]
        cluster = await asyncio.to_thread(join._pair_with_any, targets, "attic", folder, head.code())
    credentials = folder.credentials()
    assert cluster == "tower"
    assert credentials is not None
    assert credentials.cluster_id == StateFolder(tmp_path / "head").authority().cluster_id  # pyright: ignore


async def test_a_code_that_opens_none_is_refused(tmp_path: Path) -> None:
    async with master(tmp_path / "one") as one, master(tmp_path / "two") as two:
        targets = [join._targets(where)[0] for where in (one.where, two.where)]
        with pytest.raises(PairingError):
            await asyncio.to_thread(
                join._pair_with_any, targets, "attic", StateFolder(tmp_path / "w"), "1-zebra-zebra-zebra"
            )
    assert not (tmp_path / "w").exists()


# --- tokens -------------------------------------------------------------------------------------------------


async def test_a_token_of_another_cluster_is_passed_over_and_opens_its_own(tmp_path: Path) -> None:
    async with master(tmp_path / "other") as other, master(tmp_path / "head") as head:
        folder, token = StateFolder(tmp_path / "worker"), parse_token(head.token())
        targets = [join._targets(where)[0] for where in (other.where, head.where)]
        cluster = await asyncio.to_thread(join._redeem_at_any, targets, "attic", folder, token)
        assert cluster == "tower"
        assert not other.registrar.admissions
        [admission] = head.registrar.admissions
    credentials = folder.credentials()
    assert credentials is not None
    assert admission.node == credentials.node_id


def test_the_digest_in_a_token_chooses_among_the_clusters_found(monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token(bytes.fromhex("ab" * 32), bytes(16))
    ours, other = Target((), "ab" * 8, "ours"), Target((), "cd" * 8, "other")
    monkeypatch.setattr(join, "_discover", lambda: [other, ours])
    assert join._holders(token, None) == [ours]
    monkeypatch.setattr(join, "_discover", lambda: [other])
    with pytest.raises(NothingFoundError, match="made the token"):
        join._holders(token, None)


async def test_one_mistyped_character_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    token = str(Token(bytes(32), bytes(16)))
    typo = token[:20] + ("b" if token[20] != "b" else "c") + token[21:]
    ran = await run_verb(tmp_path / "worker", "join", "127.0.0.1:1", VRM_JOIN_TOKEN=typo)
    assert ran.code == 4, "3 would mean that it had dialled"
    assert ran.error_lines == ["error: The join token has a typing error. Copy it again; nothing was sent."]


async def test_code_and_token_exclude_each_other(tmp_path: Path) -> None:
    ran = await run_verb(
        tmp_path, "join", "127.0.0.1:1", "--code", "4-otter-maple-drum", VRM_JOIN_TOKEN=str(Token(bytes(32), bytes(16)))
    )
    assert ran.code == 2
    assert "exclude each other" in ran.err
