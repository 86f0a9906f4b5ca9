"""A sample of the family matrix (`make families` runs all of it): one family of each kind that the engine runs."""

from __future__ import annotations

import pytest

from tests.helpers.family_matrix import examine
from tests.helpers.family_table import exact_before

SAMPLE = {
    "llama": set[str](),
    "gemma3n_text": {"window", "shared KV", "mixed layers", "more crosses"},  # and streams of hidden states
    "glm_moe_dsa": {"indexer", "expert groups", "more crosses"},  # layers that share what an indexer chose
    "deepseek_v4": {"indexer", "state", "mixed layers", "more crosses"},  # compressed keys, token ids in layers
    "qwen3_next": {"state", "mixed layers", "experts"},
    "gpt2": set[str](),  # without a pipeline plan, with embedded positions
}


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_split_at_every_layer_is_what_transformers_makes_of_it(family: str):
    outcome = examine(family)
    assert outcome.reason == ""
    assert outcome.exact, outcome
    assert set(outcome.mechanisms) >= SAMPLE[family]


def test_the_page_calls_at_least_eighty_families_exact():
    assert len(exact_before()) >= 80
