"""Inputs that fuzzing found, or that are worth keeping: each has its one honest answer, for ever."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import frames
from transport import identity, issuing
from transport.errors import TransportError, TrustError
from transport.identity import ClusterAuthority
from transport.issuing import Issuer, NoBook, RenewalApplicant, TokenApplicant
from transport.pairing import REFUSAL, JoinerHandshake, PairingDesk
from transport.tokens import Token

CORPUS = Path(__file__).parent / "fuzz_corpus"
NOW = 1_800_000_000.0
TAKEN = {
    "bytes-behind-meta": False, "cut-in-payload": True, "empty-tensor-on-ping": True, "key-twice": True,
    "number-in-64-bits": True, "unknown-optional": True, "valid-activation": True, "shape-empty-and-huge": False,
    "payload-256-mib-claimed": True,
}  # fmt: skip
"""Streams that end without an error. All others are refused with a named one."""


def files(pattern: str) -> list[Path]:
    found = sorted(CORPUS.glob(pattern))
    assert found
    return found


@pytest.mark.parametrize("path", files("frames-*.bin"), ids=lambda path: path.stem)
def test_a_stream_of_frames_is_taken_or_refused_by_name_in_every_chunking(path: Path) -> None:
    outcome = frames.replay(path.read_bytes())
    assert (outcome.error is None) == TAKEN.get(path.stem.removeprefix("frames-"), False), outcome.error


def conversations() -> dict[str, Callable[[bytes], object]]:
    """Everything on either side of the two ways to join that reads a message."""
    authority = ClusterAuthority.create("home", NOW)
    head, key = authority.enrol_head("tower", identity.make_key(), NOW), identity.make_key()
    code = (desk := PairingDesk()).invite(NOW, random.Random(1))
    joiner, master = JoinerHandshake(code, key, head.certificate_der), desk.begin(authority, head.certificate_der)
    master.request(joiner.request(master.greeting(NOW), NOW), NOW)
    joiner.confirm(master.answer())
    own = authority.issue(identity.make_request(key), NOW)
    pems = (key, identity.to_pem(own), authority.certificate_pem)
    credentials = identity.Credentials(identity.node_id_of_key(key), "elm", "home", head.node_id, *pems)
    issuer = Issuer(authority, head.certificate_der, NoBook())
    greeted = issuing.read_greeting(issuer.greeting(NOW))
    return {
        "greeting": lambda m: JoinerHandshake(code, key, head.certificate_der).request(m, NOW),
        "request": lambda m: desk.begin(authority, head.certificate_der).request(m, NOW),
        "answer": joiner.confirm,
        "confirm": lambda m: master.confirm(m, NOW),
        "accepted": lambda m: joiner.finish(m, "elm"),
        "issuer": lambda m: issuer.answer(m, NOW),
        "issuer's greeting": issuing.read_greeting,
        "token": lambda m: TokenApplicant(Token(bytes(32), bytes(16)), key, greeted).finish(m, "elm"),
        "renewal": RenewalApplicant(credentials).finish,
    }


@pytest.mark.parametrize("path", files("join-*.bin"), ids=lambda path: path.stem)
def test_garbage_at_any_step_of_joining_is_a_named_error(path: Path) -> None:
    for step, said in conversations().items():
        try:
            answer = said(path.read_bytes())
        except TransportError:
            continue
        assert step == "confirm" and answer == REFUSAL, step  # a proof with something beside it is a wrong proof


@pytest.mark.parametrize("path", files("request-*.der"), ids=lambda path: path.stem)
def test_a_certificate_request_for_more_than_its_own_name_is_refused_by_name(path: Path) -> None:
    authority, request = ClusterAuthority.create("home", NOW), path.read_bytes()
    if path.stem == "request-head-mark":  # its subject says "head", and a subject counts for nothing
        assert not identity.is_heads(authority.issue(request, NOW))
        return
    with pytest.raises(TrustError):
        authority.issue(request, NOW)
    with pytest.raises(TrustError):
        identity.node_id_of_request(request)
