"""transformers as a peer: `generate`, and its continuous batching. In bfloat16 it holds twice the bytes of int8.

    python -m bench.table.peer_transformers FOLDER [--threads N]

Prints a JSON line per figure. A process of its own, so that its memory is gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from bench.table.cells import CROWD, DECODE, PREFILL, Work
from bench.table.peer_llama import finished
from bench.table.report import Other
from bench.table.streams import NotMeasuredError, fresh_prompt

RUN_S: Final = 900.0
CACHE_SHARE: Final = 0.05
"""Of the memory: what continuous batching would otherwise fill."""


def measure_transformers(folder: Path, threads: int = 2) -> list[Other]:
    """In a process of its own. Raises NotMeasuredError."""
    words = [sys.executable, "-m", "bench.table.peer_transformers", str(folder), "--threads", str(threads)]
    done = finished(words, RUN_S)
    if done.returncode != 0:
        raise NotMeasuredError(f"transformers failed: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [Other(line["name"], tuple(line["rates"])) for line in lines]


def figures(folder: Path, repetitions: int = 2) -> dict[str, list[float]]:
    """Tokens a second, by the name of what was measured."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    asks: dict[str, Callable[[], float]] = {
        "generate, prefill 128": lambda: _prefill(model, PREFILL),
        "generate, decode, 1 stream": lambda: _decode(model, DECODE),
        "continuous batching, 16 streams": lambda: _crowd(model, CROWD),
    }
    return {name: [ask() for _ in range(repetitions)] for name, ask in asks.items()}


def _prefill(model: Any, work: Work) -> float:
    return work.prompt_tokens / _generate_s(model, work.prompt_tokens, 1)


def _decode(model: Any, work: Work) -> float:
    """What the tokens behind the first take beyond what it takes."""
    first_s = _generate_s(model, work.prompt_tokens, 1)
    return (work.tokens - 1) / (_generate_s(model, work.prompt_tokens, work.tokens) - first_s)


def _generate_s(model: Any, prompt_tokens: int, tokens: int) -> float:
    prompt = torch.tensor([fresh_prompt(model.config.vocab_size, prompt_tokens)])
    started = time.perf_counter()
    told = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False)
    if told.shape[1] != prompt_tokens + tokens:
        raise NotMeasuredError(f"{told.shape[1] - prompt_tokens} tokens came, {tokens} were asked for.")
    return time.perf_counter() - started


def _crowd(model: Any, work: Work) -> float:
    """Tokens a second of all streams, from when the last one began until the first one ended."""
    prompts = [fresh_prompt(model.config.vocab_size, work.prompt_tokens) for _ in range(work.streams)]
    told = model.generate_batch(
        prompts,
        GenerationConfig(max_new_tokens=work.tokens, do_sample=False),
        ContinuousBatchingConfig(max_memory_percent=CACHE_SHARE),
        record_timestamps=True,
        warmup=False,
    ).values()
    if [len(one.generated_tokens) for one in told] != [work.tokens] * work.streams:
        raise NotMeasuredError("Continuous batching gave another number of tokens.")
    begin, end = max(one.timestamps[0] for one in told), min(one.timestamps[-1] for one in told)
    return sum(begin < at <= end for one in told for at in one.timestamps) / (end - begin)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table.peer_transformers")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name, rates in figures(options.folder).items():
        print(json.dumps({"name": name, "rates": rates}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
