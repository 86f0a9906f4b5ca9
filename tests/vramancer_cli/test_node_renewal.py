"""The head's own certificate while it runs: the loop in the composition root, on real files and a real port."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.helpers.cluster import make_credentials, open_node, until
from transport import identity, tls
from transport.identity import ClusterAuthority
from transport.pairing import PairingDesk
from vramancer_cli import node
from vramancer_cli.runtime.state_folder import StateFolder

DAY_S = 86400


async def test_a_running_head_renews_its_own_and_shows_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "RENEWAL_LOOK_S", 0.01)
    authority = ClusterAuthority.create("home", time.time() - 50 * DAY_S)
    old = authority.enrol_head("tower", identity.make_key(), time.time() - 40 * DAY_S)
    folder = StateFolder(tmp_path)
    folder.save_credentials(old)
    async with open_node(old, desk=PairingDesk(), authority=authority) as head:
        link_before = head.endpoint
        task = asyncio.create_task(node._keep_young(folder, authority, old, head.endpoint))
        await until(lambda: folder.credentials() != old)
        new = folder.credentials()
        assert new is not None and new.node_id == old.node_id and not new.renewable(time.time() + 29 * DAY_S)
        client = tls.make_contexts(make_credentials(authority, "w"), accepts_pairing=False).control_client
        await until(lambda: link_before._reception._house.admission.leaf_der == new.certificate_der)
        _, writer = await asyncio.open_connection(
            "127.0.0.1", head.endpoint.port, ssl=client, server_hostname=old.node_id
        )
        assert tls.leaf_of(writer.get_extra_info("ssl_object")) == new.certificate_der
        writer.transport.abort()
        task.cancel()
        await asyncio.wait([task])
