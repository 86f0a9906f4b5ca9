from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from transport import identity
from transport.contracts import Outcome
from transport.errors import RemovedError, TransportError, TrustError
from transport.identity import ClusterAuthority
from transport.tokens import parse_token
from vramancer_cli.errors import UsageError
from vramancer_cli.runtime import registrar as module
from vramancer_cli.runtime.registrar import ADMITTED_FILE, REVOKED_FILE, TOKENS_FILE, Registrar
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.telemetry.security import Event, Kind
from vramancer_cli.telemetry.security_log import SecurityLog, read

NOW = 1_800_000_000.0
HOUR_S = 3600.0
AUTHORITY = ClusterAuthority.create("home", NOW)
ELM, OAK, FIR = "e" * 32, "0a" * 16, "0a" + "f" * 30


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registrar(tmp_path: Path, clock: Clock) -> Registrar:
    return opened(tmp_path, clock)


def opened(path: Path, clock: Callable[[], float] = lambda: NOW) -> Registrar:
    return Registrar(StateFolder(path), AUTHORITY, clock)


def secret_of(registrar: Registrar, *, reusable: bool = False, hours: float = 24) -> bytes:
    return parse_token(registrar.invite(reusable=reusable, hours=hours)[0]).secret


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_names_the_authority_and_lets_one_machine_in(registrar: Registrar) -> None:
    text, record = registrar.invite(reusable=False, hours=24)
    token = parse_token(text)
    assert token.authority_digest.hex() == AUTHORITY.cluster_id
    assert (record.made_s, record.ends_s) == (NOW, NOW + 24 * HOUR_S)
    assert registrar.redeem(token.secret, ELM, NOW)
    assert not registrar.redeem(token.secret, OAK, NOW)
    [used] = registrar.tokens
    assert (used.use_count, used.last_uses[0].node, used.last_uses[0].at_s) == (1, ELM, NOW)
    [admission] = registrar.admissions
    assert (admission.node, admission.how) == (ELM, f"token {record.id}")


def test_a_reusable_one_lets_many_in_until_its_end(registrar: Registrar) -> None:
    secret = secret_of(registrar, reusable=True, hours=2)
    assert all(registrar.redeem(secret, f"{number:032x}", NOW + number) for number in range(20))
    assert registrar.redeem(secret, ELM, NOW + 2 * HOUR_S - 1)
    assert not registrar.redeem(secret, OAK, NOW + 2 * HOUR_S)
    assert len(registrar.tokens[0].last_uses) == module.KEPT_USES
    assert registrar.tokens[0].use_count == 21


def test_a_single_one_ends_after_its_hours(registrar: Registrar) -> None:
    secret = secret_of(registrar)
    assert not registrar.redeem(secret, ELM, NOW + 24 * HOUR_S)
    assert registrar.redeem(secret, ELM, NOW + 24 * HOUR_S - 1)


def test_of_many_at_once_with_one_token_one_gets_in(registrar: Registrar) -> None:
    secret = secret_of(registrar)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: registrar.redeem(secret, f"{number:032x}", NOW), range(32)))
    assert sum(won) == 1


@pytest.mark.parametrize("hours", [0, -1, 8761, float("nan"), float("inf")])
def test_a_life_without_sense_is_refused(registrar: Registrar, hours: float) -> None:
    with pytest.raises(UsageError, match="hours"):
        registrar.invite(reusable=False, hours=hours)


def test_tokens_survive_a_restart_used_and_unused(registrar: Registrar, tmp_path: Path) -> None:
    used, open_one = secret_of(registrar), secret_of(registrar)
    assert registrar.redeem(used, ELM, NOW)
    again = opened(tmp_path)
    assert not again.redeem(used, OAK, NOW)
    assert again.redeem(open_one, OAK, NOW)
    assert [admission.node for admission in opened(tmp_path).admissions] == [ELM, OAK]


def test_no_file_holds_a_secret(registrar: Registrar, tmp_path: Path) -> None:
    text, _ = registrar.invite(reusable=True, hours=1)
    secret = parse_token(text).secret
    registrar.redeem(secret, ELM, NOW)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret not in kept
    assert secret.hex().encode() not in kept
    assert text[-33:-7].encode() not in kept


def test_the_files_are_private(registrar: Registrar, tmp_path: Path) -> None:
    secret = secret_of(registrar)
    registrar.redeem(secret, ELM, NOW)
    registrar.remove(ELM)
    for name in (TOKENS_FILE, ADMITTED_FILE, REVOKED_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_open_tokens_are_bounded_and_old_ones_are_forgotten(registrar: Registrar, clock: Clock) -> None:
    for _ in range(module.OPEN_TOKENS):
        secret_of(registrar, hours=1)
    with pytest.raises(UsageError, match="open already"):
        secret_of(registrar)
    for _ in range(3):
        clock.now += HOUR_S
        for _ in range(module.OPEN_TOKENS):
            secret_of(registrar, hours=1)
    assert len(registrar.tokens) == module.KEPT_TOKENS


def full_disk(name: str, value: object) -> None:
    raise StateFolderError("No space left on device.")


def test_when_nothing_can_be_written_nobody_gets_in(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secret_of(registrar)
    monkeypatch.setattr(registrar._folder, "write_record", full_disk)
    with pytest.raises(TransportError, match="No space"):
        registrar.redeem(secret, ELM, NOW)
    with pytest.raises(TransportError):
        registrar.admit(ELM, "code in slot 1", NOW)
    with pytest.raises(StateFolderError):
        registrar.invite(reusable=False, hours=1)
    with pytest.raises(StateFolderError):
        registrar.remove(ELM)
    assert not registrar.removed and not registrar.admissions and len(registrar.tokens) == 1
    monkeypatch.undo()
    assert registrar.redeem(secret, ELM, NOW), "and the token is as good as before"


def test_a_crash_after_the_token_was_spent_lets_nobody_in_twice(
    registrar: Registrar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secret_of(registrar)
    assert registrar._folder is not None
    write = registrar._folder.write_record
    monkeypatch.setattr(
        registrar._folder, "write_record", lambda n, v: full_disk(n, v) if n == ADMITTED_FILE else write(n, v)
    )
    with pytest.raises(TransportError):
        registrar.redeem(secret, ELM, NOW)
    assert not opened(tmp_path).redeem(secret, OAK, NOW)


def test_a_broken_file_of_removals_is_no_empty_one(registrar: Registrar, tmp_path: Path) -> None:
    registrar.remove(ELM)
    (tmp_path / REVOKED_FILE).write_text("[{")
    with pytest.raises(StateFolderError, match=r"revoked\.json is broken"):
        opened(tmp_path)


# --- admissions and renewal -----------------------------------------------------------------------------------------


def test_a_node_is_known_by_the_name_that_it_joined_with(registrar: Registrar, tmp_path: Path) -> None:
    registrar.admit(ELM, "code in slot 4", NOW)
    registrar.named(ELM, "attic")
    registrar.named(OAK, "a stranger to the book")
    [admission] = opened(tmp_path).admissions
    assert (admission.name, admission.how, admission.at_s) == ("attic", "code in slot 4", NOW)


def test_admissions_fit_into_their_file_even_with_the_longest_names(registrar: Registrar, tmp_path: Path) -> None:
    for number in range(module.KEPT_ADMISSIONS + 5):
        registrar.admit(f"{number:032x}", "token 1a2b3c4d", NOW + number)
        if number % 50 == 0:
            registrar.named(f"{number:032x}", "x" * 40)
    assert len(opened(tmp_path).admissions) == module.KEPT_ADMISSIONS
    names = json.dumps([{"node": ELM, "how": "code in slot 99", "at_s": NOW, "name": "x" * 40}] * 256)
    assert len(names) < 64 * 1024


def test_a_certificate_is_given_anew_to_the_key_that_asks(registrar: Registrar, clock: Clock) -> None:
    key = identity.make_key()
    node = identity.node_id_of_key(key)
    clock.now = NOW + 40 * 86400
    der = registrar.renew(node, identity.make_request(key))
    identity.check_issued(der, identity.to_der(AUTHORITY.certificate_pem), node)
    with pytest.raises(TrustError, match="another one"):
        registrar.renew(ELM, identity.make_request(key))
    registrar.remove(node)
    with pytest.raises(RemovedError):
        registrar.renew(node, identity.make_request(key))


# --- removals -------------------------------------------------------------------------------------------------------


def test_a_removal_is_for_ever(registrar: Registrar, tmp_path: Path) -> None:
    registrar.remove(ELM)
    again = opened(tmp_path)
    assert again.is_removed(ELM) and again.removed == {ELM}
    assert not again.is_removed(OAK)
    assert again.removals[0].at_s == NOW


def test_who_is_meant(registrar: Registrar) -> None:
    registrar.admit(FIR, "code in slot 4", NOW)
    registrar.named(FIR, "fir")
    present = {ELM: "attic", OAK: "twin", "b" * 32: "twin"}
    assert registrar.find("attic", present) == ELM
    assert registrar.find("fir", present) == FIR, "it is not here now, but it was let in"
    assert registrar.find(OAK, present) == OAK
    assert registrar.find("EEEEEEEE", present) == ELM
    assert registrar.find("c" * 32, {}) == "c" * 32
    with pytest.raises(UsageError, match="No node is called 'attik'") as raised:
        registrar.find("attik", present)
    assert "vramancer nodes" in raised.value.hint
    with pytest.raises(UsageError, match="2 nodes are called 'twin'") as raised:
        registrar.find("twin", present)
    assert OAK in raised.value.hint
    with pytest.raises(UsageError):
        registrar.find("0a", present)


def test_a_removed_node_is_not_meant_again(registrar: Registrar) -> None:
    """The machine came back under its old name, as another node."""
    registrar.remove(ELM)
    assert registrar.find("attic", {ELM: "attic", OAK: "attic"}) == OAK


def test_removals_are_bounded(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REMOVALS", 2)
    registrar.remove(ELM)
    registrar.remove(OAK)
    with pytest.raises(UsageError, match="more are not kept"):
        registrar.remove(FIR)


def test_in_memory_it_makes_no_tokens_and_no_files() -> None:
    registrar = Registrar()
    with pytest.raises(UsageError):
        registrar.invite(reusable=False, hours=1)
    registrar.remove(ELM)
    assert registrar.is_removed(ELM)


def test_what_could_not_be_read_back_is_not_written(registrar: Registrar, tmp_path: Path) -> None:
    """A book that is too long for its file would keep the head from starting at all."""
    registrar.admit(ELM, "code in slot 4", NOW)
    with pytest.raises(TransportError, match="too long"):
        registrar.admit(OAK, "x" * 70_000, NOW)
    assert [admission.node for admission in opened(tmp_path).admissions] == [ELM]


# --- events ---------------------------------------------------------------------------------------------------------


def test_what_happens_at_the_door_is_an_event(tmp_path: Path, clock: Clock) -> None:
    log = SecurityLog(tmp_path, clock)
    registrar = Registrar(StateFolder(tmp_path), AUTHORITY, clock, log)
    _, record = registrar.invite(reusable=False, hours=1)
    registrar.admit(ELM, "code in slot 4", NOW)
    registrar.named(ELM, "attic")
    registrar.note(Outcome("admitted", ELM, "code in slot 4"), "192.0.2.7")
    registrar.note(Outcome("wrong code", "", "code in slot 5", 2), "::ffff:192.0.2.8")
    registrar.remove(ELM)
    registrar.note(Outcome("removed", ELM), "192.0.2.7")
    log.close()
    assert read(tmp_path, 10) == (
        Event(Kind.TOKEN_MADE, NOW, invitation=f"token {record.id}"),
        Event(Kind.ADMITTED, NOW, ELM, "attic", "192.0.2.7", "code in slot 4"),
        Event(Kind.WRONG_CODE, NOW, address="192.0.2.8", invitation="code in slot 5", tries=2),
        Event(Kind.REMOVED, NOW, ELM, "attic"),
        Event(Kind.TURNED_AWAY, NOW, ELM, "attic", "192.0.2.7"),
    )


def test_every_outcome_has_a_kind_of_event() -> None:
    kinds = get_args(get_type_hints(Outcome)["kind"])
    assert set(module._OUTCOMES) == set(kinds)
