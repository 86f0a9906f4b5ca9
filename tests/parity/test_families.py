"""A sample of the family matrix (`make families` runs all of it): one family of each kind that the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.family_matrix import Outcome, examine
from tests.helpers.family_runs import outcomes
from tests.helpers.family_table import exact_before, lost

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


def test_a_run_goes_on_where_it_stopped_and_one_family_does_not_end_the_others(tmp_path: Path):
    (known,) = outcomes(["no-such-family"], tmp_path)
    assert known.family == "no-such-family" and known.reason and not known.exact
    kept = tmp_path / "no-such-family.msgpack"
    written = kept.stat()
    again, other = outcomes(["no-such-family", "nor-this"], tmp_path)
    assert again == known or str(again) == str(known)  # what was not measured is NaN
    assert (kept.stat().st_mtime_ns, other.family) == (written.st_mtime_ns, "nor-this")


def test_what_the_page_calls_exact_must_stay_so():
    assert lost([Outcome("llama"), Outcome("no-such-family")])[0] == "llama"
