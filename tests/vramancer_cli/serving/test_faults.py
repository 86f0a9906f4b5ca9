from __future__ import annotations

import pytest

from transport.errors import PairingError, TransportError
from vramancer_cli.errors import (
    InvalidRequestError,
    ModelError,
    NodeLostError,
    NotReadyError,
    QueueFullError,
)
from vramancer_cli.serving.faults import BUG_SENTENCE, Fault, RefusedError, fault_of, is_bug


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError("no", param="top_p", code="invalid_value"), 400, "invalid_value"),
        (NotReadyError("loading"), 503, "not_ready"),
        (QueueFullError(), 429, "queue_full"),
        (NodeLostError(node="attic"), 503, "node_lost"),
        (ModelError("bad weights"), 500, "failed"),
        (TransportError("cut"), 500, "failed"),
        (PairingError("Too many pairing codes are open."), 429, "too_many_codes"),
        (TimeoutError(), 504, "timeout"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
        (RefusedError(Fault(404, "none", code="model_not_found")), 404, "model_not_found"),
    ],
)
def test_every_error_has_a_status_and_all_four_keys(error: Exception, status: int, code: str) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.code) == (status, code)
    assert set(fault.body()["error"]) == {"message", "type", "param", "code"}
    assert fault.message


def test_a_wait_is_named_where_waiting_helps() -> None:
    assert all(
        int(fault_of(e).headers["Retry-After"]) > 0 for e in (NotReadyError(), QueueFullError(), NodeLostError())
    )


def test_a_lost_node_is_named_once() -> None:
    assert "attic" in fault_of(NodeLostError(node="attic")).message
    assert fault_of(NodeLostError("attic went away.", node="attic")).message == "attic went away."


def test_a_bug_tells_nothing_of_the_inside() -> None:
    assert fault_of(ZeroDivisionError("secret")).message == BUG_SENTENCE
    assert is_bug(ZeroDivisionError()) and not is_bug(NotReadyError())
