"""Random histories of a cluster: whatever happens, in whatever order, it comes to rest serving, if anything fits.

By seed, so that a failure is repeated by its number. `ClusterBench` checks each action as it is performed: one plan
serving at a time, old stages released before new ones, every stage ready before serving.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import HEAD, VERSIONS, device, model_facts, node_facts, node_id, node_load, settings
from transport.types import Versions
from vramancer_cli.cluster import events, membership
from vramancer_cli.cluster.board import cluster_status
from vramancer_cli.cluster.reconcile import Reconciliation, next_actions
from vramancer_cli.cluster.records import BACK_OFF_S
from vramancer_cli.cluster.state import State, considering
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import validate

SEEDS = range(60)
STEPS = 60
MODELS = (model_facts(), model_facts(layers=(3000, 500, 2000), name="other"))
"""The first takes about 43,000 bytes, 8,000 of them for the ends; the second 33,000."""
LIMITS_BYTES = (60_000, 30_000, 25_000, 15_000, 9_000, 5_000, 100, 0)
HONESTY = (1.0, 1.0, 1.0, 0.5, 0.0)
"""The part of the limit that is really there when it comes to loading."""
OLD_TORCH = Versions("0.1.0", "2.12.0", "5.23.0")


class History:
    """Workers come, go, come back, lie about their memory; requests come and go; late messages arrive."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = ClusterBench()
        self.bench.choose(MODELS[0], settings())
        self.bench.join_number(0, self.rng.choice((60_000, 30_000, 15_000)))

    def run(self) -> None:
        happenings = (
            self.join, self.lose, self.answer, self.answer, self.answer, self.wait, self.wait, self.reconcile,
            self.reconcile, self.reconcile, self.rest, self.busy, self.late_message, self.choose, self.serving_breaks,
            self.back_off, self.drain,
        )  # fmt: skip
        for _ in range(STEPS):
            self.rng.choice(happenings)()
            self.check()

    def join(self) -> None:
        versions = OLD_TORCH if self.rng.random() < 0.1 else VERSIONS
        limits = [self.rng.choice(LIMITS_BYTES) for _ in range(self.rng.choice((1, 1, 1, 2, 3)))]
        facts = node_facts(self.rng.randint(1, 4), *limits, versions=versions)
        present = [int(limit_bytes * self.rng.choice(HONESTY)) for limit_bytes in limits]
        self.bench.join(facts, *present, overhead_bytes=self.rng.choice((0, 0, 700)))

    def lose(self) -> None:
        self.bench.lose(self.rng.randint(1, 4))

    def answer(self) -> None:
        self.bench.answer(self.rng.choice(sorted(self.bench.workers)))

    def wait(self) -> None:
        self.bench.wait(self.rng.choice((0.1, 0.5, 1.0, 2.5)))
        for node in self.bench.workers:
            self.bench.note(events.NodeHeard(node, self.bench.now, node_load(1, 2, 3), 0.001))
        assert membership.silent(self.bench.state, self.bench.now, 1.0) == ()

    def back_off(self) -> None:
        """Long enough for all who rest to be tried again."""
        self.bench.wait(BACK_OFF_S)
        self.wait()
        for event in membership.rested(self.bench.state, self.bench.now):
            self.bench.note(event)
        assert not any(record.resting for record in self.bench.state.nodes.values())

    def reconcile(self) -> None:
        self.bench.reconcile()
        assert next_actions(self.bench.state, self.bench.now).actions == ()

    def rest(self) -> None:
        """Left alone, the cluster comes to rest: serving on sound ground exactly when the model fits."""
        self.bench.note(events.BusyChanged(0, 0))
        self.bench.run_until_quiet()
        assert next_actions(self.bench.state, self.bench.now + 100.0) == Reconciliation()
        if self.fits():
            self.check_serving()
        else:
            assert self.bench.serving is None
            assert self.bench.state.failure is not None
            assert self.bench.state.interruption is None, "requests wait for ever"

    def drain(self) -> None:
        self.bench.note(events.NodeDraining(node_id(self.rng.randint(0, 4))))

    def busy(self) -> None:
        self.bench.note(events.BusyChanged(self.rng.randint(0, 1), self.rng.randint(0, 1)))

    def late_message(self) -> None:
        """Of any epoch but the one that the worker is loading now."""
        node, epoch = node_id(self.rng.randint(1, 4)), self.rng.randint(0, self.bench.state.epoch + 1)
        worker = self.bench.workers.get(node)
        if worker is None or worker.loading is None or worker.loading.epoch != epoch:
            self.bench.note(events.StageLoading(node, epoch, 1, 2, self.bench.now))
            self.bench.note(events.StageBecameReady(node, epoch, direct=False))

    def choose(self) -> None:
        if self.rng.random() < 0.2:
            self.bench.choose(self.rng.choice(MODELS), settings())

    def serving_breaks(self) -> None:
        if self.bench.serving is not None:
            self.bench.note(events.ServingBroke(self.bench.serving.epoch, "an error"))

    # --- what always holds --------------------------------------------------------------------------------------

    def check(self) -> None:
        epochs = [action.epoch for action in self.bench.made()]
        assert epochs == sorted(set(epochs))
        serving = self.bench.serving
        assert self.bench.state.serving_epoch == (serving.epoch if serving is not None else None)
        self.check_board()

    def check_board(self) -> None:
        status = cluster_status(
            self.bench.state, cluster="home", cluster_id="c", version="0", uptime_s=1.0, running=0, waiting=0,
            tokens_per_s=0.0, api_url="", now=self.bench.now,
        )  # fmt: skip
        assert len(status.nodes) == len(self.bench.state.nodes)
        assert (status.state == "ready") == (status.reason == "")
        assert all(node.why for node in status.nodes)

    def check_serving(self) -> None:
        state, serving = self.bench.state, self.bench.serving
        assert serving is not None
        assert state.model is not None
        assert state.considered is not None
        validate(serving, state.model, {device.place: device.limit_bytes for device in considered(state)})
        assert considering(state) <= state.considered, "a newcomer was forgotten"
        for stage in serving.stages:
            worker = self.bench.workers[stage.node]
            assert worker.facts.versions == VERSIONS
            assert stage.total_bytes + worker.overhead_bytes <= worker.present[stage.position]

    def fits(self) -> bool:
        state = self.bench.state
        assert state.model is not None
        try:
            place(state.model, considered(state), HEAD, settings(), 1)
        except DoesNotFitError:
            return False
        return True


def considered(state: State) -> list[DeviceCapacity]:
    return [
        DeviceCapacity(node, node, device(), limit_bytes, position)
        for node, limits in considering(state)
        for position, limit_bytes in enumerate(limits)
    ]


@cache
def story(seed: int) -> tuple[str, ...]:
    """The kinds of actions that a whole history caused."""
    history = History(seed)
    history.run()
    history.rest()
    return tuple(type(action).__name__ for action in history.bench.actions)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_history_comes_to_rest(seed: int) -> None:
    assert "MakePlan" in story(seed)


def test_the_histories_are_eventful() -> None:
    """A test of the test: histories in which little happens would prove little."""
    seen = Counter(kind for seed in SEEDS for kind in story(seed))
    assert seen["StopServing"] > len(SEEDS)
    assert seen["StartServing"] > len(SEEDS)
    assert seen["Release"] > len(SEEDS) / 2
    assert seen["EndRequests"] > 3
