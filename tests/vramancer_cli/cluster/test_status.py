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
