from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.api_trust import FAR, bearer, keyed, signed
from vramancer_cli.serving import keys, signing
from vramancer_cli.serving.auth import GRANTS, Asked, Role
from vramancer_cli.serving.faults import Fault, RefusedError
from vramancer_cli.serving.gate import Caller, Gate
from vramancer_cli.serving.settings import ServerSettings

ROLES: tuple[Role, ...] = ("user", "admin", "metrics")
NEAR = Asked(host="localhost", peer="127.0.0.1", own_address="127.0.0.1")
AWAY = Asked(host="192.168.1.7", peer=FAR, own_address="192.168.1.7", secure=True)


def gate_on(host: str, settings: ServerSettings) -> Gate:
    gate = Gate(settings)
    gate.listens_on(host)
    return gate


async def fault_of(gate: Gate, asked: Asked, role: Role | None = "user") -> Fault | None:
    try:
        await gate.admit(asked, role)
    except RefusedError as error:
        return error.fault
    return None


def showing(asked: Asked, key: str) -> Asked:
    return replace(asked, authorization=bearer(key)["Authorization"])


@pytest.mark.parametrize("asked", [NEAR, AWAY])
async def test_a_role_opens_its_routes_and_no_other(tmp_path: Path, asked: Asked) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    for held, key in by_role.items():
        for role in ROLES:
            fault = await fault_of(gate, showing(asked, key), role)
            assert (fault is None) == (role in GRANTS[held]), (held, role)  # type: ignore[index]
            assert fault is None or (fault.status, fault.code) == (403, "insufficient_role")
    for role in ROLES:
        fault = await fault_of(gate, asked, role)
        assert fault is not None and (fault.status, fault.code) == (401, "invalid_api_key")
    assert await fault_of(gate, asked, "open") is None


async def test_each_header_carries_a_key(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    assert await fault_of(gate, replace(AWAY, api_keys=(by_role["user"],))) is None
    assert await fault_of(gate, showing(AWAY, by_role["user"])) is None
    assert await fault_of(gate, replace(AWAY, api_keys=("wrong",))) is not None


async def test_loopback_is_open_although_there_are_keys(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("127.0.0.1", settings)
    for role in ROLES:
        assert await fault_of(gate, NEAR, role) is None
        assert await fault_of(gate, showing(NEAR, "none"), role) is None, "SDKs send some key"
        assert await fault_of(gate, showing(NEAR, by_role["metrics"]), role) is None


@pytest.mark.parametrize(
    ("host", "more", "asked"),
    [
        ("127.0.0.1", {"production": True}, NEAR),
        ("127.0.0.1", {"api_token": "secret"}, NEAR),
        ("127.0.0.1", {}, replace(NEAR, forwarded=True)),
        ("127.0.0.1", {}, AWAY),
        ("0.0.0.0", {}, NEAR),
        ("192.168.1.7", {}, NEAR),
    ],
)
async def test_when_loopback_is_not_open(tmp_path: Path, host: str, more: dict[str, object], asked: Asked) -> None:
    settings, by_role = keyed(tmp_path, **more)
    gate = gate_on(host, settings)
    for role in ROLES:
        fault = await fault_of(gate, asked, role)
        assert fault is not None and fault.status == 401
    assert await fault_of(gate, showing(asked, by_role["admin"]), "admin") is None


async def test_a_gate_that_was_never_told_its_bind_is_closed() -> None:
    fault = await fault_of(Gate(ServerSettings()), NEAR)
    assert fault is not None and fault.status == 401


async def test_the_token_is_an_admin_key(tmp_path: Path) -> None:
    gate = gate_on("0.0.0.0", ServerSettings(api_token="secret"))
    for role in ROLES:
        assert await fault_of(gate, showing(AWAY, "secret"), role) is None


async def test_a_revoked_key_is_refused_by_the_next_request(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    assert await fault_of(gate, showing(AWAY, by_role["user"])) is None
    keys.revoke(tmp_path, "user")
    fault = await fault_of(gate, showing(AWAY, by_role["user"]))
    assert fault is not None and fault.status == 401
    assert await fault_of(gate, showing(AWAY, by_role["admin"])) is None


async def test_typos_and_wrong_keys_sound_the_same(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, wrong_keys_limit=1000)
    gate = gate_on("0.0.0.0", settings)
    shown = (by_role["user"][:-1], keys.make_key(), "vrm_k1_", "nonsense", "é")
    faults = [await fault_of(gate, showing(AWAY, key)) for key in shown]
    assert len({str(fault) for fault in faults}) == 1 and faults[0] is not None


# --- how often ------------------------------------------------------------------------------------------------


async def test_each_address_and_each_key_has_its_limit(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, rate_limit=5)
    gate = gate_on("0.0.0.0", settings)
    for number in range(5):
        assert await fault_of(gate, AWAY, "open") is None, number
    fault = await fault_of(gate, AWAY, "open")
    assert fault is not None and (fault.status, fault.type, fault.code) == (429, "rate_limit_error", "rate_limited")
    assert 1 <= int(fault.headers["Retry-After"]) <= 12
    other = replace(AWAY, peer="192.0.2.8")
    assert await fault_of(gate, other, "open") is None, "another address is another"
    passed = 0
    for number in range(8):
        asked = showing(replace(AWAY, peer=f"192.0.2.{100 + number}"), by_role["user"])
        passed += await fault_of(gate, asked) is None
    assert passed == 5, "one key from many addresses"
    fresh = showing(replace(AWAY, peer="192.0.2.200"), by_role["admin"])
    assert await fault_of(gate, fresh) is None, "another key is another"


async def test_this_machine_is_not_limited_unless_asked(tmp_path: Path) -> None:
    settings = ServerSettings(default_rate_limit=2)
    gate = gate_on("127.0.0.1", settings)
    for _ in range(20):
        assert await fault_of(gate, NEAR) is None
    forwarded = replace(NEAR, forwarded=True)
    codes = [getattr(await fault_of(gate, forwarded, "open"), "code", None) for _ in range(3)]
    assert codes == [None, None, "rate_limited"], "a proxy asks for others"
    away = gate_on("0.0.0.0", settings)
    codes = [getattr(await fault_of(away, AWAY, "open"), "code", None) for _ in range(3)]
    assert codes == [None, None, "rate_limited"]
    asked_for = gate_on("127.0.0.1", ServerSettings(rate_limit=2))
    codes = [getattr(await fault_of(asked_for, NEAR), "code", None) for _ in range(3)]
    assert codes == [None, None, "rate_limited"]
    unlimited = gate_on("0.0.0.0", ServerSettings(rate_limit=0))
    assert [await fault_of(unlimited, AWAY, "open") for _ in range(1000)] == [None] * 1000


async def test_refused_requests_count_too(tmp_path: Path) -> None:
    gate = gate_on("0.0.0.0", ServerSettings(rate_limit=3, api_token="secret"))
    codes = [getattr(await fault_of(gate, replace(AWAY, host="evil.example")), "code", None) for _ in range(4)]
    assert codes == ["host_not_allowed"] * 3 + ["rate_limited"]


@pytest.mark.parametrize("way", ["bearer", "signature"])
async def test_after_some_wrong_keys_an_address_learns_nothing_more(tmp_path: Path, way: str) -> None:
    settings, by_role = keyed(tmp_path, rate_limit=0, wrong_keys_limit=3)
    gate = gate_on("0.0.0.0", settings)

    def guess(key: str, asked: Asked = AWAY) -> Asked:
        made = signed(key, "GET", "/") if way == "signature" else bearer(key)
        return replace(asked, authorization=made["Authorization"])

    for _ in range(3):
        fault = await fault_of(gate, guess(keys.make_key()))
        assert fault is not None and fault.status == 401
    for key in (keys.make_key(), by_role["admin"]):
        fault = await fault_of(gate, guess(key))
        assert fault is not None and (fault.status, fault.code) == (429, "too_many_wrong_keys"), "right or wrong"
        assert int(fault.headers["Retry-After"]) >= 1
    assert await fault_of(gate, guess(by_role["admin"], replace(AWAY, peer="192.0.2.8"))) is None
    assert await fault_of(gate, AWAY, "open") is None


async def test_asking_without_a_key_is_no_guess(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, rate_limit=0, wrong_keys_limit=1)
    gate = gate_on("0.0.0.0", settings)
    for _ in range(5):
        await fault_of(gate, AWAY)
    assert await fault_of(gate, showing(AWAY, by_role["user"])) is None


# --- signed requests ------------------------------------------------------------------------------------------


def with_signature(key: str, asked: Asked = AWAY, **more: object) -> Asked:
    made = signed(key, asked.method, asked.target, **more)  # type: ignore[arg-type]
    return replace(asked, authorization=made["Authorization"])


async def test_a_signature_opens_what_its_keys_role_opens(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    for held, key in by_role.items():
        for role in ROLES:
            fault = await fault_of(gate, with_signature(key), role)
            assert (fault is None) == (role in GRANTS[held])  # type: ignore[index]
    caller = await gate.admit(with_signature(by_role["user"], body=b"{}"), "user")
    assert caller.body == signing.body_digest(b"{}")


@pytest.mark.parametrize("other", [{"method": "POST"}, {"target": "/api/invites"}, {"target": "/?x=1"}])
async def test_a_signature_for_another_request_is_wrong(tmp_path: Path, other: dict[str, str]) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    fault = await fault_of(gate, replace(with_signature(by_role["user"]), **other))  # type: ignore[arg-type]
    assert fault is not None and (fault.status, fault.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(("off_s", "passes"), [(-320, False), (-280, True), (280, True), (320, False)])
async def test_a_signature_is_good_for_five_minutes(tmp_path: Path, off_s: int, passes: bool) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    fault = await fault_of(gate, with_signature(by_role["user"], time_s=int(time.time()) + off_s))
    assert (fault is None) == passes
    assert fault is None or (fault.status, fault.code) == (401, "request_expired")


async def test_a_replay_is_refused_also_by_the_next_process(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    asked = with_signature(by_role["user"], time_s=int(time.time()) + 250)
    assert await fault_of(gate, asked) is None
    for again in (gate, gate_on("0.0.0.0", settings)):
        fault = await fault_of(again, asked)
        assert fault is not None and (fault.status, fault.code) == (401, "request_replayed")


async def test_a_revoked_or_ended_key_signs_nothing(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    gate = gate_on("0.0.0.0", settings)
    keys.revoke(tmp_path, "user")
    assert await fault_of(gate, with_signature(by_role["user"])) is not None
    ended = keys.add(tmp_path, "ended", "user", time.time() - 2 * 86400, days=1)
    assert await fault_of(gate, with_signature(ended)) is not None
    assert await fault_of(gate, showing(AWAY, ended)) is not None


async def test_a_bad_signature_is_refused_on_an_open_loopback_too(tmp_path: Path) -> None:
    gate = gate_on("127.0.0.1", ServerSettings(state_folder=tmp_path))
    for authorization in ("VRM-HMAC-SHA256 garbage", signed(keys.make_key(), "GET", "/")["Authorization"]):
        fault = await fault_of(gate, replace(NEAR, authorization=authorization))
        assert fault is not None and fault.status == 401


# --- for how long ---------------------------------------------------------------------------------------------


async def test_what_runs_under_a_key_is_cut_when_it_goes(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, revoked_s=0.01)
    gate = gate_on("0.0.0.0", settings)

    async def answer(caller: Caller) -> None:
        with gate.running(caller):
            await asyncio.Event().wait()

    callers = [
        await gate.admit(showing(AWAY, by_role[role]), "open" if role == "metrics" else "user") for role in ROLES[:2]
    ]
    answers = [asyncio.create_task(answer(caller)) for caller in (*callers, Caller("admin"))]
    watching = asyncio.create_task(gate.cut_revoked())
    keys.revoke(tmp_path, "user")
    await asyncio.wait({answers[0]}, timeout=5)
    assert answers[0].cancelled() and not answers[1].done() and not answers[2].done()
    for task in (*answers, watching):
        task.cancel()
    await asyncio.gather(*answers, watching, return_exceptions=True)
    assert not gate._running
