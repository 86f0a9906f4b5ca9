from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

from aiohttp import ClientSession

from tests.helpers.api_trust import authority, bearer, certificate_of
from tests.helpers.scripted_server import serving
from tests.helpers.verbs import run_verb
from vramancer_cli.runtime import enrolment, run_file
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.serving import keys
from vramancer_cli.serving.settings import ServerSettings


async def test_a_key_is_shown_once_alone_on_stdout_and_opens_a_running_node_until_it_is_revoked(tmp_path: Path) -> None:
    settings = ServerSettings(state_folder=tmp_path, production=True, close_s=0.2)
    keys.add(tmp_path, "first", "admin", time.time())
    async with serving(settings=settings) as server, ClientSession(server.url) as http:

        async def status_with(key: str) -> int:
            async with http.get("/v1/models", headers=bearer(key)) as reply:
                return reply.status

        made = await run_verb(tmp_path, "keys", "add", "laptop", "--days", "3")
        key = made.out.strip()
        assert (made.code, made.out) == (0, f"{key}\n") and key.startswith(keys.PREFIX)
        assert not keys.is_mistyped(key)
        assert "laptop" in made.err and "not shown again" in made.err and key not in made.err
        assert await status_with(key) == 200
        listed = await run_verb(tmp_path, "keys", "list")
        assert "laptop" in listed.out and "user" in listed.out and key not in listed.out
        gone = await run_verb(tmp_path, "keys", "revoke", "laptop")
        assert gone.code == 0
        assert await status_with(key) == 401
        again = await run_verb(tmp_path, "keys", "revoke", "laptop")
        assert again.code == 2 and len(again.error_lines) == 1 and "first" in again.err


async def test_as_json_there_is_all_but_what_opens_anything(tmp_path: Path) -> None:
    made = json.loads((await run_verb(tmp_path, "keys", "add", "grafana", "--role", "metrics", "--json")).out)
    assert (made["name"], made["role"], made["ends_s"]) == ("grafana", "metrics", None)
    (record,) = keys.read(tmp_path)
    assert record.digest == keys.digest_of(made["key"]) and record.role == "metrics"
    listed = await run_verb(tmp_path, "keys", "list", "--json")
    (told,) = json.loads(listed.out)
    assert set(told) == {"name", "role", "id", "created_s", "ends_s", "ended"}
    assert told["id"] == record.id and told["ended"] is False
    assert record.digest not in listed.out and record.signing not in listed.out
    assert json.loads((await run_verb(tmp_path, "keys", "revoke", "grafana", "--json")).out)["name"] == "grafana"
    assert (await run_verb(tmp_path, "keys", "list", "--json")).out == "[]\n"


async def test_wrong_use_is_one_line_and_2(tmp_path: Path) -> None:
    for arguments in (
        ["add", "a b"],
        ["add", "x", "--role", "root"],
        ["add", "x", "--days", "0"],
        ["revoke", "x"],
        ["add"],
    ):
        ran = await run_verb(tmp_path, "keys", *arguments)
        assert (ran.code, ran.out, len(ran.error_lines)) == (2, "", 1), ran
    assert not (tmp_path / keys.KEYS_FILE).exists()


async def test_ca_writes_the_clusters_authority_for_clients(tmp_path: Path) -> None:
    none = await run_verb(tmp_path, "keys", "ca")
    assert none.code == 2 and none.out == ""
    credentials, ca = enrolment.found_cluster("attic", StateFolder(tmp_path), time.time())
    ran = await run_verb(tmp_path, "keys", "ca")
    assert ran.out.encode() == ca.certificate_pem
    assert ran.err.replace(":", "").lower().split()[-1] == credentials.cluster_id
    pem = tmp_path / "ca.pem"
    pem.write_text(ran.out)
    trusting = ssl.create_default_context(cafile=pem)
    async with serving(certificate=certificate_of(ca)) as server, ClientSession() as http:
        async with http.get(f"https://localhost:{server.port}/live", ssl=trusting) as reply:
            assert reply.status == 200
    assert json.loads((await run_verb(tmp_path, "keys", "ca", "--json")).out)["ca_pem"] == ran.out


async def test_the_folders_owner_needs_no_key_of_their_own(tmp_path: Path) -> None:
    """The verbs sign with a key of the folder that the running node keeps, where it asks for one."""
    settings = ServerSettings(state_folder=tmp_path, production=True, close_s=0.2)
    keys.add(tmp_path, "phone", "user", time.time())
    keys.add(tmp_path, "old", "admin", time.time() - 9 * 86400, days=1)
    keys.add(tmp_path, "desk", "admin", time.time())
    async with serving(settings=settings) as server:
        run_file.write(tmp_path, RunRecord.of_this_process(server.url, 5001, "head"))
        ran = await run_verb(tmp_path, "invite")
        assert (ran.code, ran.out) == (0, "4-otter-maple-drum\n"), ran.err
        elsewhere = await run_verb(tmp_path, "invite", VRM_URL=server.url)
        assert elsewhere.code == 2, "a URL that was named gets no signature of the folder's keys"


async def test_a_verb_reaches_its_node_by_https(tmp_path: Path) -> None:
    _, ca = enrolment.found_cluster("attic", StateFolder(tmp_path), time.time())
    async with serving(certificate=certificate_of(ca)) as server:
        url = f"https://localhost:{server.port}"
        ran = await run_verb(tmp_path, "invite", VRM_URL=url)
        assert (ran.code, ran.out) == (0, "4-otter-maple-drum\n"), ran.err
    async with serving(certificate=certificate_of(authority())) as server:
        ran = await run_verb(tmp_path, "invite", VRM_URL=f"https://localhost:{server.port}")
        assert ran.code == 4 and len(ran.error_lines) == 1 and "cannot prove" in ran.err
