"""Errors as HTTP sees them: one table from exception to status, and OpenAI's error object, all four keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from transport.errors import PairingError, TransportError
from vramancer_cli.errors import InvalidRequestError, NodeLostError, NotReadyError, QueueFullError, VramancerError

RETRY_NOT_READY_S: Final = 5
RETRY_QUEUE_FULL_S: Final = 1
BUG_SENTENCE: Final = "The server failed on this request; its log says why."


@dataclass(frozen=True, slots=True)
class Fault:
    """A reply that says no. `type`, `param` and `code` are OpenAI's; `headers` go out with the reply."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class RefusedError(VramancerError):
    """The request was refused. `fault` is the whole reply."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def fault_of(error: Exception) -> Fault:
    """The reply for an error; what is not an error for people becomes a plain 500 that tells nothing of the inside."""
    match error:
        case RefusedError():
            return error.fault
        case InvalidRequestError():
            return Fault(400, str(error), param=error.param, code=error.code)
        case NotReadyError():
            return unavailable(str(error), "not_ready", RETRY_NOT_READY_S)
        case QueueFullError():
            return Fault(429, str(error), "rate_limit_error", code="queue_full", headers=_retry(RETRY_QUEUE_FULL_S))
        case NodeLostError():
            return unavailable(_naming(error), "node_lost", RETRY_NOT_READY_S)
        case PairingError():  # too many codes are open: one of them has to be used, or to run out
            return Fault(429, f"{error} {error.hint}".strip(), "rate_limit_error", code="too_many_codes")
        case VramancerError() | TransportError():
            return Fault(500, f"{error} {error.hint}".strip(), "server_error", code="failed")
        case TimeoutError():
            return Fault(504, "The cluster did not answer in time.", "server_error", code="timeout")
        case _:
            return Fault(500, BUG_SENTENCE, "server_error", code="internal_error")


def unavailable(reason: str, code: str, retry_s: int) -> Fault:
    return Fault(503, reason, "server_error", code=code, headers=_retry(retry_s))


def is_bug(error: Exception) -> bool:
    """Whether nobody foresaw this error: its traceback belongs in the log."""
    return not isinstance(error, (VramancerError, TransportError, TimeoutError))


def _naming(error: NodeLostError) -> str:
    if not error.node or error.node in str(error):
        return str(error)
    return f"{str(error).rstrip('.')}: {error.node}."


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
