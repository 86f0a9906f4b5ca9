from __future__ import annotations

from dataclasses import replace

from tests.helpers.boards import CLUSTER as STATUS
from vramancer_cli.cluster.status import ClusterStatus


def test_the_numbers_are_those_computed_in_and_those_held():
    assert STATUS.numbers == "bfloat16"
    assert replace(STATUS, quantize="int4").numbers == "bfloat16, int4 weights"


def test_a_head_that_knows_no_formats_has_plain_weights():
    data = replace(STATUS, quantize="int8").to_json()
    assert ClusterStatus.from_json(data).quantize == "int8"
    del data["quantize"]
    assert ClusterStatus.from_json(data).quantize == "none"


def test_a_head_that_does_not_guess_says_nothing_of_it():
    data = replace(STATUS, tokens_per_trip=2.5, draft_acceptance=0.8).to_json()
    status = ClusterStatus.from_json(data)
    assert (status.tokens_per_trip, status.draft_acceptance) == (2.5, 0.8)
    del data["tokens_per_trip"], data["draft_acceptance"]
    assert ClusterStatus.from_json(data).tokens_per_trip is None
