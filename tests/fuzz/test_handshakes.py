"""A sample of what `make fuzz` says at the two doors to join by, and that the fuzzer notices an open one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz import handshakes, issuing, joining
from transport import issuing as issuing_protocol
from transport import pairing
from transport.pairing import PairingDesk
from vramancer_cli.runtime.registrar import Registrar

SEED = 20261121


def run(count: int, folder: Path) -> handshakes.Tally:
    return handshakes.run(count, SEED, folder, progress=lambda _: None)


def test_a_sample_of_handshakes_finds_nothing(tmp_path: Path) -> None:
    tally = run(500, tmp_path)
    assert not tally.findings, tally.findings[0].what
    reached = " ".join(tally.kinds)
    kinds = {kind.__name__ for kind in (*joining.KINDS, *issuing.KINDS)} - {
        "texts",
        "guessing",
        "confirm",
        "token_text",
        "redeem",
    }
    assert all(name.split("_")[0] in reached for name in kinds) and "guesses counted" in reached
    assert tally.kinds["let in"] and tally.kinds["joined"] and tally.kinds["renewed"]


def _believes(*_: Any) -> bool:
    return True


def _refuses_otherwise(desk: PairingDesk, slot: int, code: str, proven: bool, now: float) -> bool:
    return proven  # counts no try and never closes a code


@pytest.mark.parametrize(
    ("place", "name", "broken", "told"),
    [
        (PairingDesk, "accept", _believes, "certificate"),
        (PairingDesk, "accept", _refuses_otherwise, "still open|other way|certificate"),
        (pairing.hmac, "compare_digest", _believes, "certificate|credentials|secret"),
        (Registrar, "is_removed", lambda *_: False, "removed|nobody deserved"),
        (issuing_protocol, "check_issued", lambda *_: None, "nobody deserved|secret|changed|another"),
        (issuing_protocol, "is_heads", lambda *_: True, "renew|said to a stranger|deserved"),
    ],
)
def test_an_open_door_is_found(
    place: object, name: str, broken: Callable[..., Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, broken)
    found = run(400, tmp_path).findings
    assert found
    assert any(word in finding.what for finding in found for word in told.split("|")), found[0].what


def test_an_error_without_a_name_is_found_and_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> bytes:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(pairing, "check_issued", fails)
    found = run(400, tmp_path).findings
    assert found and "KeyError" in found[0].what and found[0].command.startswith("python -m fuzz handshakes --seed")
    number = int(found[0].case.rpartition(":")[2])
    assert handshakes.run(1, SEED, tmp_path, first=number, progress=lambda _: None).findings
