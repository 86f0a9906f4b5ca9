from __future__ import annotations

from vramancer_cli.runtime.trips import TripCount
from vramancer_cli.scheduling.step_parts import Emitted


def test_nothing_is_said_of_nothing() -> None:
    trips = TripCount()
    trips.add(Emitted(1, (), "length"))
    assert (trips.tokens_per_trip, trips.draft_acceptance) == (None, None)


def test_tokens_are_shared_among_trips_and_right_guesses_among_all() -> None:
    trips = TripCount()
    trips.add(Emitted(1, (5,), None))
    assert (trips.tokens_per_trip, trips.draft_acceptance) == (1.0, None)
    trips.add(Emitted(1, (5, 6, 7), None, drafted=3, right=2))
    trips.add(Emitted(1, (8,), "stop", drafted=1, right=1))
    assert (trips.tokens_per_trip, trips.draft_acceptance) == (2.0, 0.75)
