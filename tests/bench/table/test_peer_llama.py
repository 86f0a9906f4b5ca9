"""What llama.cpp's tools print, as version 0.3.36 of the package has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.table import llama_build
from bench.table.llama_build import BuildError
from bench.table.peer_llama import batched_rate, bench_rate
from bench.table.streams import NotMeasuredError

BENCH = (
    '{"build_commit": "0c1e570", "model_type": "llama 1B (guessed) Q8_0", "n_threads": 2, "n_prompt": 128, "n_gen": 0, '
    '"n_depth": 0, "avg_ns": 3432481737, "avg_ts": 37.705072, "samples_ts": [ 33.7529, 41.6573 ]}\n'
)
BATCHED = (
    "\n"
    '{"n_kv_max": 4096, "n_batch": 2048, "n_threads": 2, "pp": 32, "tg": 32, "pl": 16, "n_kv": 1024, '
    '"t_pp": 10.558697, "speed_pp": 48.490833, "t_tg": 18.096767, "speed_tg": 28.292345, "t": 28.655464, '
    '"speed": 35.734894}\n\n'
)


def test_rates_are_read_off_what_the_tools_print():
    assert bench_rate(BENCH, prompt=128) == 37.705072
    assert batched_rate(BATCHED, streams=16, tokens=32) == 28.292345


@pytest.mark.parametrize(("told", "prompt"), [(BENCH, 256), (BENCH * 2, 128), ("no model\n", 128)])
def test_another_measurement_than_was_asked_for_is_none(told: str, prompt: int):
    with pytest.raises(NotMeasuredError):
        bench_rate(told, prompt=prompt)


def test_other_streams_than_were_asked_for_are_no_measurement():
    with pytest.raises(NotMeasuredError):
        batched_rate(BATCHED, streams=8, tokens=32)


def test_programs_that_are_built_are_not_built_again(tmp_path: Path):
    (tmp_path / "llama.cpp-build" / "bin").mkdir(parents=True)
    for name in llama_build.TARGETS:
        (tmp_path / "llama.cpp-build" / "bin" / name).touch()
    assert llama_build.programs(tmp_path) == tmp_path / "llama.cpp-build" / "bin"


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt-get install cmake"):
        llama_build.programs(tmp_path)
