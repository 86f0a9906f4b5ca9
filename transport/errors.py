"""Errors of the transport floor. Each class's docstring is the default sentence for the user.

`hint` names the next step; `exit_code` is what a command exits with. Imports nothing.
"""

from __future__ import annotations


class TransportError(Exception):
    """Two machines could not talk."""

    exit_code = 1
    hint = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if hint:
            self.hint = hint


class LocalProtocolError(TransportError):
    """This program tried to send something that the protocol does not allow."""


class RemoteProtocolError(TransportError):
    """The other side sent something that the protocol does not allow."""


class LinkClosedError(TransportError):
    """The link to the other machine is closed."""


class LinkBusyError(TransportError):
    """The other machine does not take data as fast as it is sent."""


class UnreachableError(TransportError):
    """The other machine does not answer."""

    exit_code = 3
    hint = "Check that it is on, on the same network, and that its firewall lets the node port in."


class IncompatibleError(TransportError):
    """The two programs speak different protocol versions."""

    exit_code = 4
    hint = "Update the older one."


class TrustError(TransportError):
    """The other machine could not prove who it is."""

    exit_code = 4


class ClockError(TrustError):
    """The clocks of the two machines are too far apart."""

    hint = "Set the clock that is wrong, then try again."


class RemovedError(TrustError):
    """This machine was removed from its cluster."""

    hint = "To come back it needs a new code: 'vramancer invite' on the master, then 'vramancer join' here."


class PairingError(TrustError):
    """The pairing code was not accepted."""

    hint = "Get a fresh code with 'vramancer invite' on the master, and type it exactly."


class PortBusyError(TransportError):
    """The port is already in use."""

    exit_code = 1
