from __future__ import annotations

import random
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster import open_node
from transport import discovery, identity
from transport.errors import RemovedError, TrustError
from transport.pairing import PairingDesk, PairingError
from transport.types import Address, Peer
from vramancer_cli.errors import UsageError, VramancerError
from vramancer_cli.runtime import enrolment
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder

DAY_S = 86400


@pytest.fixture
def head_folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "head")


@pytest.fixture
def worker_folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "worker")


async def test_found_announce_find_enrol_and_rejoin_without_a_code(
    head_folder: StateFolder, worker_folder: StateFolder
) -> None:
    """The whole road of a new machine, and the short one after a restart."""
    head, authority = enrolment.found_cluster(f"tower-{secrets.token_hex(2)}", head_folder, time.time())
    desk = PairingDesk()
    async with open_node(head, host=None, desk=desk, authority=authority) as master:
        port = master.endpoint.port
        said = Peer(head.cluster_id[:16], head.cluster, discovery.local_addresses(port), True, 5000, "0.1.0")
        async with await discovery.announce(said):
            seen = {peer.cluster_id_prefix: peer for peer in await enrolment.find_clusters(10)}
        peer = seen[head.cluster_id[:16]]
        code = desk.invite(time.time(), random.Random(1))
        made = await enrolment.enrol(peer.addresses, code, "laptop", worker_folder, peer.cluster_id_prefix)
        again = worker_folder.credentials()
        assert again == made
        async with open_node(again) as worker:
            link = await worker.endpoint.dial_control(worker_folder.head_addresses(), again.head)
            assert link.hello.node == head.node_id


async def test_a_refused_code_leaves_nothing_behind(head_folder: StateFolder, worker_folder: StateFolder) -> None:
    head, authority = enrolment.found_cluster("tower", head_folder, time.time())
    async with open_node(head, desk=PairingDesk(), authority=authority) as master:
        with pytest.raises(PairingError):
            await enrolment.enrol(master.addresses, "4-otter-maple-drum", "laptop", worker_folder)
    assert not worker_folder.path.exists()


async def test_only_clusters_that_let_machines_in_are_found() -> None:
    said = Peer(secrets.token_hex(8), f"shut {secrets.token_hex(2)}", discovery.local_addresses(5001), False, 5000, "0")
    async with await discovery.announce(said):
        found = await enrolment.find_clusters(2.5)
    assert said.cluster_id_prefix not in {peer.cluster_id_prefix for peer in found}


def test_a_cluster_is_founded_once(head_folder: StateFolder) -> None:
    now = time.time()
    first = enrolment.found_cluster("tower", head_folder, now)
    assert enrolment.found_cluster("tower", head_folder, now + DAY_S) == first
    credentials, authority = first
    assert credentials.cluster == authority.name == "tower"
    assert credentials.head == credentials.node_id


def test_the_heads_certificate_is_renewed_and_its_name_may_change(head_folder: StateFolder) -> None:
    now = time.time()
    before, authority = enrolment.found_cluster("tower", head_folder, now)
    after, same = enrolment.found_cluster("attic", head_folder, now + 200 * DAY_S)
    after.check(now + 200 * DAY_S)
    assert same == authority
    assert (after.node_id, after.cluster, after.name) == (before.node_id, "tower", "attic")
    assert head_folder.credentials() == after


def test_a_lost_credentials_file_of_the_head_is_made_anew(head_folder: StateFolder) -> None:
    before, authority = enrolment.found_cluster("tower", head_folder, time.time())
    (head_folder.path / "credentials.json").unlink()
    after, same = enrolment.found_cluster("tower", head_folder, time.time())
    assert same == authority
    assert after.cluster_id == before.cluster_id


def test_a_workers_folder_founds_no_cluster(head_folder: StateFolder, worker_folder: StateFolder) -> None:
    credentials, _ = enrolment.found_cluster("tower", head_folder, time.time())
    worker_folder.save_credentials(credentials)
    with pytest.raises(UsageError, match="node of the cluster 'tower'"):
        enrolment.found_cluster("laptop", worker_folder, time.time())
    assert worker_folder.credentials() == credentials


async def test_a_heads_folder_joins_no_other_cluster(head_folder: StateFolder) -> None:
    enrolment.found_cluster("tower", head_folder, time.time())
    with pytest.raises(UsageError, match="itself the master"):
        await enrolment.enrol([Address("127.0.0.1", 9)], "4-otter-maple-drum", "x", head_folder)


def test_files_of_two_clusters_in_one_folder_are_a_named_error(tmp_path: Path, head_folder: StateFolder) -> None:
    enrolment.found_cluster("tower", head_folder, time.time())
    foreign, _ = enrolment.found_cluster("other", StateFolder(tmp_path / "other"), time.time())
    head_folder.save_credentials(foreign)
    with pytest.raises(VramancerError, match="two clusters"):
        enrolment.found_cluster("tower", head_folder, time.time())


async def test_a_token_enrols_and_comes_back_without_one(head_folder: StateFolder, worker_folder: StateFolder) -> None:
    head, authority = enrolment.found_cluster("tower", head_folder, time.time())
    registrar = Registrar(head_folder, authority)
    token = enrolment.parse_token(registrar.invite(reusable=False, hours=1)[0])
    async with open_node(head, desk=PairingDesk(), authority=authority, book=registrar) as master:
        made = await enrolment.enrol_by_token(master.addresses, token, "laptop", worker_folder)
        assert worker_folder.credentials() == made
        async with open_node(made) as worker:
            link = await worker.endpoint.dial_control(worker_folder.head_addresses(), made.head)
            assert link.hello.node == head.node_id
    with pytest.raises(UsageError, match="itself the master"):
        await enrolment.enrol_by_token([], token, "x", head_folder)


def test_a_removed_node_forgets_its_key_and_remembers_why(head_folder: StateFolder, worker_folder: StateFolder) -> None:
    credentials, _ = enrolment.found_cluster("tower", head_folder, time.time())
    worker_folder.save_credentials(credentials)
    worker_folder.save_head_addresses([Address("127.0.0.1", 9)])
    enrolment.refuse_removed(worker_folder)
    with pytest.raises(RemovedError, match="removed from the cluster 'tower'") as raised:
        with enrolment.forgetting_when_removed(worker_folder, "tower"):
            raise RemovedError
    assert raised.value.exit_code == 4
    assert [path.name for path in worker_folder.path.iterdir()] == ["removed.json"]
    with pytest.raises(RemovedError, match="'tower'"):
        enrolment.refuse_removed(worker_folder)
    worker_folder.save_credentials(credentials)
    enrolment.refuse_removed(worker_folder)


def test_other_errors_cost_no_node_its_key(head_folder: StateFolder, worker_folder: StateFolder) -> None:
    credentials, _ = enrolment.found_cluster("tower", head_folder, time.time())
    worker_folder.save_credentials(credentials)
    with pytest.raises(TrustError):
        with enrolment.forgetting_when_removed(worker_folder, "tower"):
            raise TrustError
    assert worker_folder.credentials() == credentials


def test_a_head_from_before_the_mark_gets_a_certificate_with_it(head_folder: StateFolder) -> None:
    """Else no token of its could be redeemed: joiners show them to the marked machine only."""
    credentials, authority = enrolment.found_cluster("tower", head_folder, time.time())
    plain = authority.issue(identity.make_request(credentials.key_pem), time.time())
    head_folder.save_credentials(replace(credentials, certificate_pem=identity.to_pem(plain)))
    again, _ = enrolment.found_cluster("tower", head_folder, time.time())
    assert identity.is_heads(again.certificate_der)
    assert again.node_id == credentials.node_id


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "torch transformers aiohttp typer rich numpy"
    program = f"import sys, vramancer_cli.runtime.enrolment; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
