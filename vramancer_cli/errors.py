"""Errors that a user may see, with their exit codes. Each class's docstring is the default sentence.

Exit codes: 1 failed, 2 wrong use, 3 not reachable, 4 not trusted, 5 does not fit, 130 interrupted.
Imports only transport.errors.
"""

from __future__ import annotations

from typing import Final

from transport.errors import PairingError as PairingError
from transport.errors import TransportError


class VramancerError(Exception):
    """Something went wrong."""

    exit_code = 1
    hint = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if hint:
            self.hint = hint


class IntegrityError(VramancerError):
    """The block tables of the KV cache contradict each other."""


class UsageError(VramancerError):
    """The command was not used correctly."""

    exit_code = 2


class DaemonUnreachableError(VramancerError):
    """No VRAMancer answers here."""

    exit_code = 3
    hint = "Start one with 'vramancer start --master', or name another with --url."


class UntrustedServerError(VramancerError):
    """What answers cannot prove that it belongs to this cluster."""

    exit_code = 4
    hint = "Ask from a machine of the cluster, or name its state folder with --state-dir."


class ModelError(VramancerError):
    """The model cannot be used."""

    hint = "Use a folder with config.json, tokenizer.json and .safetensors files."


class DoesNotFitError(VramancerError):
    """The model does not fit into the memory of the nodes. `missing_bytes` more are needed."""

    exit_code = 5
    hint = "Join another machine, raise --memory, or lower --context."

    def __init__(self, message: str = "", *, missing_bytes: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.missing_bytes = missing_bytes


class OverLimitError(VramancerError):
    """A node was told to hold more than its memory limit allows."""

    exit_code = 5

    def __init__(self, message: str = "", *, needed_bytes: int, present_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.present_bytes = present_bytes


class NonFiniteError(VramancerError):
    """The model computed values that are not finite."""

    hint = "Load the model with --dtype float32 or bfloat16."


class NotReadyError(VramancerError):
    """The model is not ready yet."""


class NodeLostError(VramancerError):
    """A node that held part of the model was lost in the middle of the answer."""

    def __init__(self, message: str = "", *, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class QueueFullError(VramancerError):
    """Too many requests are waiting."""


class InvalidRequestError(VramancerError):
    """The request is not valid. `param` names the field at fault."""

    def __init__(self, message: str = "", *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


SHOWN: Final = (VramancerError, TransportError)
"""What the doorbell turns into one line and an exit code; anything else is a bug and shows its traceback."""
