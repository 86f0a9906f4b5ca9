from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vramancer_cli.errors import UsageError
from vramancer_cli.serving import keys
from vramancer_cli.serving.exposure import LAN_HTTP_COST, check_exposure, check_start, server_settings
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.settings import NodeSettings

LONG = "x" * 32
HTTPS = frozenset({"https://chat.example"})


def told(folder: Path, **other: Any) -> NodeSettings:
    settings = NodeSettings(
        role="head", model=None, host="127.0.0.1", port=0, port_given=True, node_port=0, node_port_given=True,
        name="attic", devices=("cpu",), memory_bytes=(), dtype="auto", context_tokens=None, state_folder=folder,
        api_token=None, log_json=False, head=None,
    )  # fmt: skip
    return replace(settings, **other)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.7", "attic.local"])
def test_other_binds_than_loopback_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="needs a key") as caught:
        check_exposure(host, ServerSettings(), has_keys=False, can_https=True)
    assert "VRM_API_TOKEN" in caught.value.hint and "vramancer keys add" in caught.value.hint
    check_exposure(host, ServerSettings(), has_keys=True, can_https=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    check_exposure(host, ServerSettings(), has_keys=False, can_https=False)


def test_other_machines_need_https_or_a_person_who_knows_what_it_costs() -> None:
    with pytest.raises(UsageError, match="only the master") as caught:
        check_exposure("0.0.0.0", ServerSettings(), has_keys=True, can_https=False)
    assert "--allow-lan-http" in caught.value.hint
    check_exposure("0.0.0.0", ServerSettings(allow_lan_http=True), has_keys=True, can_https=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("settings", "has_keys", "named"),
    [
        (ServerSettings(production=True, allow_lan_http=True), True, "--allow-lan-http"),
        (ServerSettings(production=True, rate_limit=0), True, "--rate-limit"),
        (ServerSettings(production=True, cors_origins=HTTPS | {"http://chat.example"}), True, "http://chat.example"),
        (ServerSettings(production=True, api_token="x" * 31), True, "VRM_API_TOKEN"),
        (ServerSettings(production=True), False, "vramancer keys add"),
    ],
)
def test_production_refuses_every_relaxation_by_name(
    host: str, settings: ServerSettings, has_keys: bool, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_exposure(host, settings, has_keys=has_keys, can_https=True)
    assert "VRM_PRODUCTION=1" in str(caught.value)
    assert named in f"{caught.value} {caught.value.hint}"
    if has_keys:
        check_exposure(host, replace(settings, production=False), has_keys=True, can_https=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_production_without_relaxations_starts(host: str) -> None:
    settings = ServerSettings(production=True, api_token=LONG, cors_origins=HTTPS, rate_limit=100)
    check_exposure(host, settings, has_keys=True, can_https=True)


def test_the_keys_of_the_folder_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a key"):
        check_start(told(tmp_path, host="0.0.0.0"))
    keys.add(tmp_path, "laptop", "user", time.time())
    assert check_start(told(tmp_path, host="0.0.0.0")) == []
    with pytest.raises(UsageError, match="only the master"):
        check_start(told(tmp_path, host="0.0.0.0", role="worker"))


def test_what_allow_lan_http_costs_is_said(tmp_path: Path) -> None:
    assert check_start(told(tmp_path, host="0.0.0.0", api_token="x", allow_lan_http=True)) == [LAN_HTTP_COST]
    assert check_start(told(tmp_path, allow_lan_http=True)) == []


def test_every_setting_reaches_the_server(tmp_path: Path) -> None:
    settings = told(
        tmp_path, api_token="t", cors_origin="https://chat.example", allow_lan_http=True, production=True, rate_limit=7
    )
    assert server_settings(settings, frozenset({"attic"})) == ServerSettings(
        api_token="t", state_folder=tmp_path, host_names=frozenset({"attic"}), cors_origins=HTTPS,
        allow_lan_http=True, production=True, rate_limit=7,
    )  # fmt: skip
    with pytest.raises(UsageError, match="every web page"):
        server_settings(told(tmp_path, cors_origin="*"))
