"""What guessing tokens ahead is worth: tokens per trip, and speed against the same answers without.

    python -m bench.drafting [--repetitions N] [--processes]

In this process: scheduler, stages and ends as a head drives them, in float32 on one thread, with drafting and without
in turn; what counts is the process's own time for the answers behind their first token, so that other work on the
machine counts little. Every answer with drafting is held against the one without: they must be the same.

- *editing*: a model that answers files of this repository with their edited versions (see `edited_files`);
- *answers*: the built-in model, asked questions of its own; answers of which fewer than half of the runs of four
  tokens are distinct are left out;
- *again*: it is asked each question a second time in the same conversation;
- *16 streams*: all of these questions at once; *sampled*: at temperature 1.5, where little can be guessed.

`--processes` asks the built-in model through the API too, on one node and on three, by wall-clock time.
Writes results/drafting.json and results/drafting.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import torch

from bench.binary import surroundings
from bench.edited_files import edited_files, teach
from bench.reports import Measured, Row, table
from build_scripts.local_cluster import LocalCluster, local_cluster
from transport.messages import ModelRef, Plan, StagePlan
from transport.types import LayerRange
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import Scheduled
from vramancer_cli.serving.text import TextTools

RESULTS: Final = Path(__file__).parent / "results"
COMPARED: Final = ("with drafting", "without")
QUESTIONS: Final = (
    "What is VRAMancer?",
    "How do I join another machine?",
    "What does the planner do?",
    "How do I stop a node?",
    "Why is my model slow?",
    "What is a pairing code?",
    "Which models can I run?",
    "What happens when a machine dies?",
)
ANSWER_TOKENS: Final = 120
TRIPS_GOAL: Final = 2.5
SPEED_GOAL: Final = 1.0
LEAST_SPEED: Final = 0.97
STREAMS: Final = 16
GREEDY: Final = Sampling(temperature=0.0)
_BLOCK_TOKENS: Final = 16
_STEP_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: tuple[int, ...]
    most_tokens: int
    sampling: Sampling = GREEDY


@dataclass(slots=True)
class Run:
    """What a set of asks gave: their tokens, the trips behind the first tokens, and the seconds these took."""

    answers: list[list[int]]
    trips: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Head:
    """A scheduler, every stage and both ends in this process. `draft` as in Scheduler."""

    def __init__(self, folder: Path, stages: int, draft: int | None, stops: frozenset[int] = frozenset()) -> None:
        engine = TorchEngine("cpu", limit_bytes=2 << 30, threads=1)
        plan = make_plan(engine, folder, stages)
        self._stages = [engine.load_stage(folder, plan, index, lambda *_: None) for index in range(stages)]
        self._ends = engine.load_ends(folder, plan, lambda *_: None)
        self._stops = stops
        self._next = 0
        self._scheduler = Scheduler.of_plan(plan, prefix_cache=False, draft=draft, max_running=STREAMS)

    def close(self) -> None:
        for stage in self._stages:
            stage.close()
        self._ends.close()

    def answer(self, asks: Sequence[Ask]) -> Run:
        """All of them at once."""
        run, first = Run([[] for _ in asks]), self._next
        self._next += len(asks)
        for number, ask in enumerate(asks, start=first):
            self._scheduler.add(number, ask.prompt, ask.sampling, ask.most_tokens, self._stops)
        began = time.process_time()
        while (scheduled := self._scheduler.schedule(time.process_time())) is not None:
            self._step(scheduled, run, first)
            if not all(run.answers):
                began, run.trips, run.tokens = time.process_time(), 0, 0  # somebody's prompt is still computed
        run.seconds = time.process_time() - began
        return run

    def _step(self, scheduled: Scheduled, run: Run, first: int) -> None:
        step = scheduled.step
        boundary = self._ends.embed(step, scheduled.token_ids)
        for stage in self._stages:
            boundary = stage.execute(step, boundary)
        tokens = [token for output in self._ends.read(boundary, scheduled.readouts) for token in output.tokens]
        for emitted in self._scheduler.commit(step, tokens, time.process_time()):
            run.answers[emitted.sequence - first] += emitted.token_ids
            run.trips += 1
            run.tokens += len(emitted.token_ids) + (emitted.finish_reason == "stop")


def make_plan(engine: TorchEngine, folder: Path, stages: int) -> Plan:
    ref = ModelRef("bench", "folder", str(folder), engine.digest(folder))
    facts = engine.model_facts(folder, ref)
    placed = tuple(_stage(engine, facts, facts.layer_count * n // stages, facts.layer_count * (n + 1) // stages)
                   for n in range(stages))  # fmt: skip
    ends_bytes = facts.ends_bytes("float32") + facts.workspace_bytes(_STEP_TOKENS)
    block_count = 2 * facts.context_tokens // _BLOCK_TOKENS + STREAMS * 24
    return Plan(
        1, ref, "float32", facts.context_tokens, _BLOCK_TOKENS, block_count, _STEP_TOKENS, "", ends_bytes, placed
    )


def _stage(engine: TorchEngine, facts: ModelFacts, start: int, end: int) -> StagePlan:
    layers = LayerRange(start, end)
    return StagePlan("", engine.device_facts(), layers, facts.weights_bytes(layers, "float32"), 0, 0)


# --- what is asked ----------------------------------------------------------------------------------------------------


class Guide:
    """The built-in model's questions as prompts, and what it answers to them."""

    def __init__(self) -> None:
        self.folder = builtin_folder()
        self.tools = TextTools.load(self.folder)
        self.stops = self.tools.stop_token_ids

    def fresh(self, temperature: float = 0.0) -> list[Ask]:
        sampling = [Sampling(temperature, seed=number) for number in range(len(QUESTIONS))]
        return [Ask(self._chat(q), ANSWER_TOKENS, s) for q, s in zip(QUESTIONS, sampling, strict=True)]

    def various(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those whose answers repeat themselves little."""
        head = Head(self.folder, 1, 0, self.stops)
        told = [(ask, head.answer([ask]).answers[0]) for ask in asks]
        head.close()
        return [ask for ask, answer in told if distinct_share(answer) >= 0.5]

    def again(self) -> list[Ask]:
        head = Head(self.folder, 1, 0, self.stops)
        asks: list[Ask] = []
        for question, ask in zip(QUESTIONS, self.fresh(), strict=True):
            told = self.tools.decode(head.answer([ask]).answers[0])
            asks.append(Ask(self._chat(question, told, question), ANSWER_TOKENS))
        head.close()
        return asks

    def _chat(self, *said: str) -> tuple[int, ...]:
        roles = ("user", "assistant")
        return self.tools.encode_chat([{"role": roles[n % 2], "content": text} for n, text in enumerate(said)])


def distinct_share(tokens: Sequence[int]) -> float:
    """Of the runs of four tokens, how many are not repeats of others."""
    runs = [tuple(tokens[place : place + 4]) for place in range(len(tokens) - 3)]
    return len(set(runs)) / max(1, len(runs))


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Case:
    """One line of the table in the making. `groups`: asks that are made at once."""

    name: str
    folder: Path
    groups: list[list[Ask]]
    stops: frozenset[int]
    trips_goal: float | None = None
    speed_goal: float = LEAST_SPEED
    stages: tuple[int, ...] = (1,)

    def measure(self, stages: int, repetitions: int) -> list[Row]:
        """A row for the tokens per trip, and one for the speed."""
        drafting, plain = (Head(self.folder, stages, draft, self.stops) for draft in (None, 0))
        for head in (drafting, plain):
            head.answer(self.groups[0])
        turns = [self._turn(drafting, plain, flip=number % 2 > 0) for number in range(repetitions)]
        drafting.close()
        plain.close()
        name = f"{self.name}, {stages} stage{'s' if stages > 1 else ''}"
        ours, others = ([turn[side] for turn in turns] for side in (0, 1))
        trips, rates = ([list(map(what, runs)) for runs in (ours, others)] for what in (_per_trip, _rate))
        return [
            _row(name, "tokens/trip", trips[0], trips[1], median(trips[0]) / median(trips[1]), self.trips_goal),
            _row(name, "tokens/s", rates[0], rates[1], _best_s(others) / _best_s(ours), self.speed_goal),
        ]

    def _turn(self, drafting: Head, plain: Head, *, flip: bool) -> tuple[list[Run], list[Run]]:
        """Every group once with and once without, one right after the other."""
        runs: dict[bool, list[Run]] = {True: [], False: []}
        for group in self.groups:
            for drafted in (True, False) if flip else (False, True):
                runs[drafted].append((drafting if drafted else plain).answer(group))
        for one, other in zip(runs[True], runs[False], strict=True):
            if one.answers != other.answers:
                raise AssertionError(f"{self.name}: drafting changed an answer.")
        return runs[True], runs[False]


def _rate(runs: Sequence[Run]) -> float:
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def _per_trip(runs: Sequence[Run]) -> float:
    return sum(run.tokens for run in runs) / sum(run.trips for run in runs)


def _best_s(turns: Sequence[Sequence[Run]]) -> float:
    """All groups, each in the turn in which the machine disturbed it least."""
    return sum(min(run.seconds for run in runs) for runs in zip(*turns, strict=True))


def _row(name: str, unit: str, ours: Sequence[float], others: Sequence[float], ratio: float, goal: float | None) -> Row:
    """Without a goal, anything will do."""
    measured, other = Measured(unit, tuple(ours)), Measured(unit, tuple(others))
    return Row(name, measured, other, f"≥ {goal:g} x" if goal else "none", ratio >= (goal or 0.0), ratio)


def cases(guide: Guide, folder: Path) -> list[Case]:
    files = edited_files(guide.tools)
    print("teaching a small model edited files ...", flush=True)
    teach(files, guide.tools.vocab_size, folder)
    editing = [[Ask(file.prompt, len(file.answer))] for file in files]
    fresh = guide.various(guide.fresh())
    crowd = [(fresh * STREAMS)[:STREAMS]]
    both = (1, 3)
    return [
        Case("editing a file", folder, editing, frozenset(), TRIPS_GOAL, SPEED_GOAL, both),
        Case("answers", guide.folder, [[ask] for ask in fresh], guide.stops, None, SPEED_GOAL, both),
        Case("asked again", guide.folder, [[ask] for ask in guide.again()], guide.stops, None, SPEED_GOAL, both),
        Case("sampled at 1.5", guide.folder, [[ask] for ask in guide.fresh(1.5)], guide.stops),
        Case(f"answers, {STREAMS} streams", guide.folder, crowd, guide.stops),
    ]


# --- through the API --------------------------------------------------------------------------------------------------


def through_the_api(nodes: int, repetitions: int) -> list[Row]:
    """The built-in model on so many nodes of one thread each, by wall-clock time."""
    with (
        tempfile.TemporaryDirectory() as name,
        local_cluster(Path(name) / "auto") as drafting,
        local_cluster(Path(name) / "off") as plain,
    ):
        for cluster, draft in ((drafting, "auto"), (plain, "off")):
            cluster.start_head("--draft", draft, "--prefer", "room")
            for _ in range(nodes - 1):
                cluster.add_worker()
            cluster.wait_ready(nodes)
        return _compare_clusters(drafting, plain, nodes, repetitions)


def _compare_clusters(drafting: LocalCluster, plain: LocalCluster, nodes: int, repetitions: int) -> list[Row]:
    rows: list[Row] = []
    for name, conversation in (("answers", _once), ("asked again", _twice)):
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(repetitions + 1):
            for drafted in (True, False) if number % 2 else (False, True):
                speeds[drafted].append(conversation(drafting if drafted else plain))
        words = f"{name}, {nodes} process{'es' if nodes > 1 else ''}"
        ours, others = speeds[True][1:], speeds[False][1:]
        rows.append(_row(words, "tokens/s", ours, others, max(ours) / max(others), SPEED_GOAL))
        print(table(rows[-1:], COMPARED), flush=True)
    return rows


def _once(cluster: LocalCluster) -> float:
    return _tokens_per_s(cluster, lambda question: [{"role": "user", "content": question}])


def _twice(cluster: LocalCluster) -> float:
    """Asked again behind the first answer, which is told here as it was there."""

    def messages(question: str) -> list[dict[str, str]]:
        asked = {"role": "user", "content": question}
        told = "".join(delta.text for delta in cluster.client.chat([asked], temperature=0.0, max_tokens=ANSWER_TOKENS))
        return [asked, {"role": "assistant", "content": told}, asked]

    return _tokens_per_s(cluster, messages)


def _tokens_per_s(cluster: LocalCluster, messages: Callable[[str], list[dict[str, str]]]) -> float:
    """Behind each answer's first piece."""
    tokens, seconds = 0, 0.0
    for question in QUESTIONS:
        asked, first_s, last_s, count = messages(question), 0.0, 0.0, 0
        for delta in cluster.client.chat(asked, temperature=0.0, max_tokens=ANSWER_TOKENS):
            last_s = time.perf_counter()
            first_s = first_s or last_s
            count = delta.completion_tokens or count
        tokens, seconds = tokens + count - 1, seconds + last_s - first_s
    return tokens / seconds


def write(rows: Sequence[Row], around: dict[str, str], folder: Path) -> str:
    """Writes drafting.json and drafting.md; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ", ".join(f"{name} {value}" for name, value in around.items())
    note = (
        "The same answers with drafting (auto) and without, in turn; the ratio is that of the times of each answer in "
        "its least disturbed turn. "
        "Stages: in one process, by its own time. Processes: nodes on this machine, through the API, by the clock."
    )
    text = f"# Guessing tokens ahead\n\n{words}. {note}\n\n{table(rows, COMPARED)}"
    data = {**around, "rows": [row.to_json() for row in rows]}
    (folder / "drafting.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "drafting.md").write_text(text, "utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="of each comparison (default: 5)")
    parser.add_argument("--processes", action="store_true", help="through the API too, on one node and on three")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    around = {**surroundings(), "torch": torch.__version__}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Guide(), Path(name)):
            for stages in case.stages:
                rows += case.measure(stages, options.repetitions)
                print(table(rows[-2:], COMPARED), flush=True)
                write(rows, around, options.out)  # each time: it takes minutes
    for nodes in (1, 3) if options.processes else ():
        rows += through_the_api(nodes, options.repetitions)
        write(rows, around, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
