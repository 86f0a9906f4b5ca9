from __future__ import annotations

import asyncio

import pytest

from tests.helpers.pipeline_bench import Silence, address, hidden, no_control
from tests.helpers.simulated_cluster import SimulatedHub, hello, node_id
from tests.helpers.virtual_time import run
from transport.contracts import Received
from transport.errors import RemoteProtocolError, TrustError, UnreachableError
from transport.messages import Activation, Ping, Step
from transport.types import Address
from vramancer_cli.runtime.data_links import DIAL_DEADLINE_S, activation, dial


def test_dialling_takes_the_first_address_that_answers_and_gives_up_in_time() -> None:
    async def scene() -> None:
        hub = SimulatedHub(0.001)
        here = hub.network(hello(0), address(0), no_control, Silence())
        hub.network(hello(1), address(1), no_control, Silence())
        old = Address("an old one", 1)
        link = await dial(here, [old, address(1)], node_id(1), lambda *_: None)
        assert link.hello.node == node_id(1)
        with pytest.raises(TrustError):
            await dial(here, [address(1)], node_id(2), lambda *_: None)
        with pytest.raises(UnreachableError):
            await dial(here, [], node_id(1), lambda *_: None)
        hub.partition(node_id(1))
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(UnreachableError, match="within 6 s"):
            await dial(here, [address(1)] * 10, node_id(1), lambda *_: None)
        assert asyncio.get_running_loop().time() - before_s == pytest.approx(DIAL_DEADLINE_S)

    run(scene())


def test_only_an_activation_with_its_tensor_is_one() -> None:
    step = Step(1, 0, ())
    message = Activation(1, step)
    assert activation(Received(1, 0, message, {"hidden_states": hidden([])})) is message
    for received in (Received(1, 0, message), Received(1, 0, Ping(1), {"hidden_states": hidden([])})):
        with pytest.raises(RemoteProtocolError):
            activation(received)
