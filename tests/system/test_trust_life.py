"""The life of trust in a real cluster: joined by a token, renewed, removed while it answers, and shut out for good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from openai import APIError, OpenAI

from build_scripts.local_cluster import LocalCluster, NodeProcess
from transport import identity
from transport.identity import Credentials
from transport.types import Address
from vramancer_cli.runtime.state_folder import StateFolder

DAY_S = 86400
FREE_PORTS = ("--port", "0", "--node-port", "0")
REMOVED = "error: This machine was removed from the cluster 'head'. To come back it needs a new code: "
MEMORY = "24MiB"
"""Two nodes hold the model; the third may go."""


def verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VRM_")}
    command = [sys.executable, "-m", "vramancer_cli", *arguments, "--state-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=kept, stdin=subprocess.DEVNULL)


def join_by_token(cluster: LocalCluster, name: str, token_file: Path) -> NodeProcess:
    arguments = ["join", f"127.0.0.1:{cluster.head.node_port}", "--token-file", str(token_file), "--name", name]
    worker = NodeProcess.launch(cluster.folder / name, [*arguments, *FREE_PORTS, "--memory", MEMORY])
    cluster.workers.append(worker)
    return worker


def start_again(folder: Path) -> NodeProcess:
    return NodeProcess.launch(folder, ["start", *FREE_PORTS, "--memory", MEMORY])


def stream_until_its_end(cluster: LocalCluster, removal: Path) -> tuple[bool, list[str]]:
    """Removes worker-2 after the third piece; whether the stream said that it was whole, and its pieces."""
    pieces: list[str] = []
    with OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        try:
            for chunk in client.completions.create(
                model="vramancer-guide", prompt="The layers of a model", max_tokens=400, stream=True
            ):
                pieces.append(chunk.choices[0].text)
                if len(pieces) == 3:
                    assert verb(removal, "nodes", "remove", "worker-2").returncode == 0
                if chunk.choices[0].finish_reason:
                    return True, pieces
        except APIError:
            return False, pieces
    raise AssertionError("the stream ended without saying why")


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(tmp_path, memory=MEMORY)


def test_join_by_token_remove_while_answering_and_come_back_as_another(cluster: LocalCluster, tmp_path: Path) -> None:
    try:
        cluster.start_head()
        token_file = tmp_path / "token"
        token_file.touch(0o600)
        made = verb(cluster.head.folder, "invite", "--token", "--reusable")
        token_file.write_text(made.stdout)
        for name in ("worker-1", "worker-2"):
            join_by_token(cluster, name, token_file)
        cluster.wait_ready(3)
        gone = cluster.workers[1]
        copy = Path(shutil.copytree(gone.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("run.json", "lock")))
        old_id = _own(gone.folder).node_id

        whole, pieces = stream_until_its_end(cluster, cluster.head.folder)
        assert whole or len(pieces) < 400
        assert gone.process.wait(10) == 4
        assert gone.output.splitlines()[-1].startswith(REMOVED)
        assert "warning: other users" not in gone.output
        assert cluster.wait_ready(2).state == "ready"
        assert json.loads((cluster.head.folder / "revoked.json").read_text())[0]["node"] == old_id

        again = verb(gone.folder, "start", *FREE_PORTS)
        assert (again.returncode, again.stderr.splitlines()[-1][: len(REMOVED)]) == (4, REMOVED)
        assert start_again(copy).process.wait(60) == 4, "a copy of its folder from before opens nothing"

        cluster.workers.remove(gone)
        cluster.workers.append(NodeProcess.launch(gone.folder, _join_arguments(cluster)))
        status = cluster.wait_ready(3)
        new_id = _own(gone.folder).node_id
        assert new_id != old_id
        assert {node.id for node in status.nodes if node.name == "worker-2" and node.state != "lost"} == {new_id}

        cluster.head.stop()
        cluster.start_head()
        assert start_again(copy).process.wait(60) == 4, "nor after a restart of the master"
    finally:
        cluster.stop()


def _join_arguments(cluster: LocalCluster) -> list[str]:
    code, _ = cluster.client.invite()
    place = f"127.0.0.1:{cluster.head.node_port}"
    return ["join", place, "--code", code, "--name", "worker-2", *FREE_PORTS, "--memory", MEMORY]


def _own(folder: Path) -> Credentials:
    credentials = StateFolder(folder).credentials()
    assert credentials is not None
    return credentials


@pytest.mark.parametrize(
    "age_days", [pytest.param(40, id="due", marks=pytest.mark.faults), pytest.param(200, id="ended")]
)
def test_a_worker_gets_its_new_certificate_by_itself(cluster: LocalCluster, age_days: int) -> None:
    """Its own is made old, as if the machine had been away; the renewal is on disk before the model is served."""
    try:
        cluster.start_head()
        folder = StateFolder(cluster.folder / "worker-1")
        authority = StateFolder(cluster.head.folder).authority()
        assert authority is not None
        key = identity.make_key()
        made_s = time.time() - age_days * DAY_S
        old = replace(
            _own(cluster.head.folder),
            node_id=identity.node_id_of_key(key),
            name="worker-1",
            key_pem=key,
            certificate_pem=identity.to_pem(authority.issue(identity.make_request(key), made_s)),
        )
        folder.save_credentials(old)
        folder.save_head_addresses([_place(cluster)])
        cluster.workers.append(start_again(folder.path))
        cluster.wait_ready(2)
        new = _own(folder.path)
        assert new.certificate_pem != old.certificate_pem
        assert replace(new, certificate_pem=old.certificate_pem) == old, "the same node, with the same key"
        assert not new.renewable(time.time() + 29 * DAY_S)
        assert "certificate renewed" in cluster.workers[0].output
    finally:
        cluster.stop()


def _place(cluster: LocalCluster) -> Address:
    return Address("127.0.0.1", cluster.head.node_port)
