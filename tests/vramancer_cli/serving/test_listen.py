from __future__ import annotations

import os
import socket

import pytest

from transport.errors import PortBusyError
from vramancer_cli.errors import UsageError
from vramancer_cli.serving.listen import holder_of, open_sockets


def closed(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    names = [sock.getsockname()[:2] for sock in sockets]
    for sock in sockets:
        sock.close()
    return names


def test_port_0_takes_one_free_port_on_every_address_of_the_name() -> None:
    names = closed(open_sockets("localhost", 0))
    assert ("127.0.0.1", names[0][1]) in names
    assert len({port for _, port in names}) == 1


def test_a_busy_port_names_its_holder_and_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortBusyError) as caught:
            open_sockets("127.0.0.1", port)
        assert str(port) in str(caught.value) and f"process {os.getpid()}" in str(caught.value)
        assert "--port" in caught.value.hint
        with pytest.raises(PortBusyError):
            open_sockets("0.0.0.0", port)


def test_a_port_held_but_not_listened_on_is_busy_too() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(PortBusyError):
            open_sockets("127.0.0.1", other.getsockname()[1])


def test_a_port_is_free_again_right_after_a_connection_was_closed_on_our_side() -> None:
    (listener,) = open_sockets("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.setblocking(True)
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = listener.accept()
        accepted.close()  # this side first: it stays in TIME_WAIT
        assert client.recv(1) == b""
    listener.close()
    assert closed(open_sockets("127.0.0.1", port)) == [("127.0.0.1", port)]


@pytest.mark.parametrize("host", ["203.0.113.9", "no such name.invalid"])
def test_an_address_of_another_machine_is_wrong_use(host: str) -> None:
    with pytest.raises(UsageError, match="not an address of this machine"):
        open_sockets(host, 0)


def test_nobody_holds_a_free_port() -> None:
    ((_, port),) = closed(open_sockets("127.0.0.1", 0))
    assert holder_of(port) == ""
