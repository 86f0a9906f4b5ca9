"""How well the stages of a pipeline overlap: two hosts of one core each, traced while they work.

    python -m bench.overlap [--bits 8] [--small] [--parts decode ...] [--out FOLDER]

- *16 streams*: how busy each stage is while all of them decode; drawn, overlap.svg;
- *64 streams*: what scheduling takes of a step on the head, with short contexts and with long ones;
- *a long prompt*: how much of its chunks' time two stages compute at once (drawn too: overlap-prefill.svg), and how
  long its first token takes on two hosts and on one.

A host is a process that is kept on one core, with one thread to compute; the head's core also schedules, samples and
serves HTTP. Writes overlap.json, overlap.md and the drawings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.binary import RESULTS, surroundings
from bench.table.model import BIG, SMALL, Shape, checkpoint
from bench.table.ours import READY_S, on_cores
from bench.table.streams import ask, fresh_prompt
from bench.timeline_svg import last_steps, timeline
from build_scripts.local_cluster import LocalCluster, local_cluster
from vramancer_cli.telemetry.activity import Activity, activity
from vramancer_cli.telemetry.cluster_trace import ClusterTrace

WORK: Final = Path(__file__).parents[1] / ".bench"
BUSY_GOAL: Final = 0.85
SCHEDULING_GOAL: Final = 0.05
DRAWN_STEPS: Final = 12
_POLL_S: Final = 0.1
_BEGIN_S: Final = 150.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, watched for `window_s` once all of them decode."""

    part: str
    name: str
    streams: int
    prompt_tokens: int
    tokens: int
    window_s: float


LOADS: Final = (
    Load("decode", "16 streams", 16, 16, 48, 5.0),
    Load("crowd", "64 streams", 64, 16, 24, 5.0),
    Load("long", "64 streams, 512 tokens of context", 64, 512, 24, 5.0),
)
PROMPT_TOKENS: Final = 1024
PARTS: Final = ("decode", "crowd", "long", "prefill")


@dataclass(frozen=True, slots=True)
class Hosts:
    """A running cluster, and what to ask it."""

    cluster: LocalCluster
    shape: Shape

    def watched(self, load: Load) -> ClusterTrace:
        """While every stream decodes; answers are asked for long enough that none ends before."""
        prompts = [fresh_prompt(self.shape.vocabulary, load.prompt_tokens) for _ in range(load.streams)]
        client = self.cluster.client
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, self.cluster.head.api_url, client.models()[0], prompts, load.tokens)
            self._wait_for_decodes(load.streams)
            time.sleep(load.window_s)
            trace = client.trace(load.window_s)
            asked.result()
        return trace

    def prefill(self, tokens: int) -> tuple[float, ClusterTrace]:
        """Seconds to the first token of a fresh prompt, and what the stages did meanwhile."""
        prompt = fresh_prompt(self.shape.vocabulary, tokens)
        began_s = time.monotonic()
        told = ask(self.cluster.head.api_url, self.cluster.client.models()[0], [prompt], 1)[0]
        trace = self.cluster.client.trace(min(60.0, time.monotonic() - began_s))
        return told.tokens_s[0] - told.asked_s, trace

    def _wait_for_decodes(self, streams: int) -> None:
        """Until a step of decodes alone has come whose rows, with those of the step before, are all streams."""
        until = time.monotonic() + _BEGIN_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            scheduled = list(self.cluster.client.trace(3.0).nodes[0].of_kind("schedule"))[-2:]
            if sum(s.rows for s in scheduled) >= streams and not any(s.prompt_tokens for s in scheduled):
                return
        raise TimeoutError("The streams do not all decode.")


def busy_row(trace: ClusterTrace) -> dict[str, Any]:
    told = activity(trace)
    return {
        "busy": [round(stage.busy, 3) for stage in told.stages],
        "ends": round(told.stages[0].ends, 3),
        "step_ms": round(told.step_s * 1e3, 2),
        "steps": told.steps,
        "rows": round(told.stages[0].mean_rows, 1),
        "scheduling_ms": round(told.scheduling_s * 1e3, 3),
        "scheduling": round(told.scheduling, 4),
        "layers": [list(place.layers) for place in trace.stages],
    }


def together(trace: ClusterTrace) -> float:
    """Of the time in which any stage computed, the share in which two did at once."""
    edges = sorted(
        (at, change)
        for node in trace.nodes
        for span in node.of_kind("compute")
        for at, change in ((span.began_s, 1), (span.ended_s, -1))
    )
    any_s = both_s = last_s = 0.0
    running = 0
    for at, change in edges:
        any_s += (at - last_s) * (running > 0)
        both_s += (at - last_s) * (running > 1)
        last_s, running = at, running + change
    return both_s / any_s if any_s else 0.0


def measure(options: argparse.Namespace, folder: Path, told: dict[str, Any]) -> None:
    """Adds to `told` what was asked for, as soon as it is known."""
    shape = SMALL if options.small else BIG
    model = checkpoint(shape, WORK)
    prefills: dict[int, float] = {}
    for cores in ((0, 1), (0,)) if "prefill" in options.parts else ((0, 1),):
        with local_cluster(folder / str(len(cores))) as cluster:
            start(cluster, model, options, cores)
            hosts = Hosts(cluster, shape)
            if len(cores) > 1:
                for load in LOADS:
                    if load.part in options.parts:
                        told["loads"][load.name] = _watch(hosts, load, options)
            if "prefill" in options.parts:
                prefills[len(cores)] = _prefill(hosts, len(cores), options, told)
    if prefills:
        told["prompt"] |= {"one_host_s": prefills[1], "two_hosts_s": prefills[2]}


def _watch(hosts: Hosts, load: Load, options: argparse.Namespace) -> dict[str, Any]:
    trace = hosts.watched(load)
    if load is LOADS[0]:
        _draw(trace, f"{load.name}, {hosts.shape.name}, {options.bits} bits", options.out / "overlap.svg")
    row = busy_row(trace) | {"load": round(os.getloadavg()[0], 1)}
    print(load.name, json.dumps(row), flush=True)
    return row


def _prefill(hosts: Hosts, count: int, options: argparse.Namespace, told: dict[str, Any]) -> float:
    """Seconds to the first token, the better of two."""
    hosts.prefill(PROMPT_TOKENS // 4)  # warm
    seconds, trace = min((hosts.prefill(PROMPT_TOKENS) for _ in range(2)), key=lambda timed: timed[0])
    print(f"prompt of {PROMPT_TOKENS} on {count} hosts: {seconds:.2f} s", flush=True)
    if count > 1:
        told["prompt"] = {"tokens": PROMPT_TOKENS, "together": round(together(trace), 3)}
        _draw(trace, f"a prompt of {PROMPT_TOKENS} tokens", options.out / "overlap-prefill.svg", 64)
    return round(seconds, 3)


def start(cluster: LocalCluster, model: Path, options: argparse.Namespace, cores: Sequence[int]) -> None:
    """Equal hosts: of what two of them need together, each lends half."""
    own = ("--device", "cpu", "--dtype", "bfloat16", "--memory", options.memory if len(cores) > 1 else "8GiB")
    with on_cores((cores[0],)):
        cluster.start_head(
            "--model", str(model), "--quantize", f"int{options.bits}", "--draft", "off", "--context", "2048", *own,
            "--prefer", "room",
        )  # fmt: skip
    for core in cores[1:]:
        with on_cores((core,)):
            cluster.add_worker(*own)
    cluster.wait_ready(len(cores), READY_S)


def _draw(trace: ClusterTrace, title: str, path: Path, steps: int = DRAWN_STEPS) -> None:
    told: Activity = activity(trace)
    shares = ", ".join(f"stage {stage.stage} {stage.busy:.0%} busy" for stage in told.stages)
    path.write_text(timeline(trace, f"{title}: {shares}", *last_steps(trace, steps)), "utf-8")


def markdown(told: dict[str, Any]) -> str:
    around = ", ".join(f"{name} {told[name]}" for name in ("date", "cpu", "cores", "model"))
    lines = [
        "# How well the stages overlap",
        "",
        f"{around}, {told['bits']} bits. Two hosts of one core each; the head's also schedules, samples and serves.",
        f"Goals: {BUSY_GOAL:.0%} busy at 16 streams, scheduling {SCHEDULING_GOAL:.0%} of a step at 64.",
        "By the clock: where the machine's load is above its cores, other programs took a part of each figure,",
        "and more of those that need both hosts at once.",
        "",
        "| streams | layers | busy, stage 0 | the ends | busy, stage 1 | a step every | scheduling | machine's load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(name, row) for name, row in told["loads"].items()),
        "",
    ]
    return "\n".join([*lines, *_prompt_lines(told["prompt"]), "![16 streams](overlap.svg)", ""])


def _line(name: str, row: dict[str, Any]) -> str:
    layers = " + ".join(str(end - start) for start, end in row["layers"])
    first, second = row["busy"]
    scheduling = f"{row['scheduling_ms']:.2f} ms, {row['scheduling']:.2%}"
    cells = (
        name,
        layers,
        f"{first:.0%}",
        f"{row['ends']:.0%}",
        f"{second:.0%}",
        f"{row['step_ms']:.1f} ms",
        scheduling,
    )
    return f"| {' | '.join(cells)} | {row['load']} |"


def _prompt_lines(prompt: dict[str, Any]) -> list[str]:
    if "one_host_s" not in prompt:
        return []
    words = (
        f"A prompt of {prompt['tokens']} tokens: {prompt['two_hosts_s']:.2f} s to its first token on two hosts, "
        f"{prompt['one_host_s']:.2f} s on one: {prompt['one_host_s'] / prompt['two_hosts_s']:.2f} times as fast. "
        f"In {prompt['together']:.0%} of the time in which a stage computed, both did."
    )
    return [words, "", "![a prompt](overlap-prefill.svg)", ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--small", action="store_true", help="a model of 60 million weights")
    parser.add_argument("--memory", default="1100MiB", help="of each of the two hosts")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="the others stay as they were")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "overlap.json"
    before = json.loads(file.read_text("utf-8")) if file.exists() else {"loads": {}, "prompt": {}}
    told = {**before, **surroundings(), "model": (SMALL if options.small else BIG).name, "bits": options.bits}
    with tempfile.TemporaryDirectory(prefix="vramancer-bench-") as folder:
        measure(options, Path(folder), told)
    file.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    (options.out / "overlap.md").write_text(markdown(told), "utf-8")
    print(markdown(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
