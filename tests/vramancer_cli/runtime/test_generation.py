from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import arithmetic_engine
from tests.helpers.arithmetic_engine import VOCABULARY, ArithmeticEnds, answer, final_rows
from tests.helpers.pipeline_bench import SMALL, WHOLE, PipelineBench
from tests.helpers.simulated_cluster import node_id
from tests.helpers.virtual_time import run
from vramancer_cli.errors import IntegrityError, InvalidRequestError, NodeLostError, NotReadyError, QueueFullError
from vramancer_cli.models.readout import Readout, RowOutput, TokenScore
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import EmbeddingRequest, Generated, GenerationRequest
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.session import MAX_RUNNING, MAX_WAITING, STEP_DEADLINE_S, StepDeadlineError
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import StepMismatchError

LOST = NodeLostError("'attic' was lost.", node="attic")


class GenerationBench:
    """A generation that serves on a pipeline; `activity` has (running, waiting) whenever it changed."""

    def __init__(self, *limits_bytes: int, draft: int | None = None) -> None:
        self._draft = draft
        self.pipeline_bench = PipelineBench(*limits_bytes)
        self.activity: list[tuple[int, int]] = []
        self.broken: list[BaseException] = []

    async def __aenter__(self) -> GenerationBench:
        await self.pipeline_bench.__aenter__()
        self.generation = Generation("arithmetic", Path(), 256, 0, self._note_activity, draft=self._draft)
        self.generation.serve(self.pipeline_bench.plan, self.pipeline_bench.pipeline, self.broken.append)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.generation.stop(LOST)
        await self.pipeline_bench.__aexit__()

    def _note_activity(self) -> None:
        self.activity.append((self.generation.running, self.generation.waiting))

    @property
    def scheduler(self) -> Scheduler:
        assert self.generation._session is not None
        return self.generation._session.scheduler

    def items(self, prompt: Sequence[int], count: int, stops: Sequence[int] = ()) -> AsyncGenerator[Generated, None]:
        question = GenerationRequest("r", tuple(prompt), Sampling(temperature=0.0), count, frozenset(stops))
        return self.generation.generate(question)

    async def ask(self, prompt: Sequence[int], count: int, stops: Sequence[int] = ()) -> list[int]:
        return [token async for item in self.items(prompt, count, stops) for token in item.token_ids]


def quietly(scene: Coroutine[Any, Any, None]) -> None:
    """Run the scene; AssertionError for an error that nobody heard."""

    async def watched() -> None:
        unheard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        await scene
        gc.collect()
        assert unheard == []

    run(watched())


def test_tokens_come_one_by_one_and_the_last_item_says_why() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            items = [item async for item in bench.items([1, 2], 5)]
            assert [token for item in items for token in item.token_ids] == answer([1, 2], 5)
            assert [item.finish_reason for item in items] == [None, None, None, None, "length"]

    quietly(scene())


def test_a_stop_token_ends_the_answer_and_is_not_in_it() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            tokens = answer([1, 2], 5)
            assert await bench.ask([1, 2], 5, stops=[tokens[3]]) == tokens[:3]

    quietly(scene())


def test_what_was_asked_before_is_found_and_answered_alike() -> None:
    async def scene() -> None:
        async with GenerationBench(SMALL, SMALL, SMALL) as bench:
            prompt = list(range(40))
            for _ in range(2):
                assert await bench.ask(prompt, 5) == answer(prompt, 5)
            assert await bench.ask(prompt[:35], 5) == answer(prompt[:35], 5)
            found, asked = bench.generation.prefix_tokens
            assert found == bench.scheduler.reused_tokens > 40
            assert asked == 40 + 40 + 35
            await bench.generation.stop(LOST)
            assert bench.generation.prefix_tokens == (found, asked), "what was found stays counted when a plan ends"
            assert bench.broken == []

    quietly(scene())


def test_the_higher_priority_is_answered_first() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            ended: list[int] = []

            async def ask(priority: int) -> None:
                question = GenerationRequest("r", (priority + 10, 2), Sampling(temperature=0.0), 8, priority=priority)
                async for _ in bench.generation.generate(question):
                    pass
                ended.append(priority)

            crowd = [asyncio.create_task(bench.ask([number], 20)) for number in range(MAX_RUNNING)]
            await asyncio.sleep(0)
            await asyncio.gather(*(ask(priority) for priority in (-1, 0, 5)))
            await asyncio.gather(*crowd)
            assert ended == [5, 0, -1]

    quietly(scene())


def test_a_leaked_block_is_found_when_nobody_asks_any_more() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            bench.scheduler._allocator._groups[0].pool.take(1)
            assert await bench.ask([1, 2], 2) == answer([1, 2], 2)
            await asyncio.sleep(1)
            assert [type(error) for error in bench.broken] == [IntegrityError]

    quietly(scene())


def test_nothing_serves_yet() -> None:
    async def scene() -> None:
        generation = Generation("arithmetic", Path(), 256, 0, lambda: None)
        generation.wait_for("2.0 GiB are missing.")
        with pytest.raises(NotReadyError, match=r"2\.0 GiB are missing"):
            await anext(generation.generate(GenerationRequest("r", (1,), Sampling(), 1)))
        await generation.stop(NotReadyError("The node is shutting down."))
        with pytest.raises(NotReadyError, match="shutting down"):
            await anext(generation.generate(GenerationRequest("r", (1,), Sampling(), 1)))

    quietly(scene())


def test_a_request_that_never_fits_is_refused_at_once() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            with pytest.raises(InvalidRequestError):
                await bench.ask([1] * 100, 1_000_000)

    quietly(scene())


def test_a_full_queue_refuses_and_those_in_it_are_served() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            asking = [asyncio.create_task(bench.ask([number], 1)) for number in range(MAX_WAITING + 3)]
            answers = await asyncio.gather(*asking, return_exceptions=True)
            refused = [a for a in answers if isinstance(a, QueueFullError)]
            assert len(refused) == 3
            assert answers[:MAX_WAITING] == [answer([number], 1) for number in range(MAX_WAITING)]

    quietly(scene())


def test_a_client_that_closes_its_answer_frees_its_place_at_once() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            async with aclosing(bench.items([1], 200)) as items:
                await anext(items)
                assert bench.generation.running == 1
            assert (bench.generation.running, bench.generation.waiting) == (0, 0)
            assert bench.activity[-1] == (0, 0)
            assert await bench.ask([2], 5) == answer([2], 5)

    quietly(scene())


def test_stopping_ends_every_request_once_with_the_error() -> None:
    async def scene() -> None:
        async with GenerationBench(SMALL, SMALL, SMALL) as bench:
            asking = [asyncio.create_task(bench.ask([number], 200)) for number in range(20)]
            await asyncio.sleep(1)
            assert bench.generation.running > 0
            assert bench.generation.waiting > 0
            await bench.generation.stop(LOST)
            answers = await asyncio.gather(*asking, return_exceptions=True)
            assert all(error is LOST for error in answers)
            assert bench.activity[-1] == (0, 0)

    quietly(scene())


def test_stopping_while_clients_leave_and_come_hangs_nobody() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            asking = [asyncio.create_task(bench.ask([number], 200)) for number in range(20)]
            await asyncio.sleep(0.5)
            for task in asking[::2]:
                task.cancel()
            stopping = asyncio.create_task(bench.generation.stop(LOST))
            late = [asyncio.create_task(bench.ask([1], 5)) for _ in range(3)]
            async with asyncio.timeout(1):
                left, stayed = asking[::2], asking[1::2]
                assert all(isinstance(e, asyncio.CancelledError) for e in await gathered(left))
                assert all(e is LOST for e in await gathered(stayed))
                assert all(isinstance(e, NotReadyError) for e in await gathered(late))
                await stopping

    quietly(scene())


async def gathered(tasks: Sequence[asyncio.Task[list[int]]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_step_that_never_comes_back_breaks_the_session_however_busy_it_is() -> None:
    async def scene() -> None:
        async with GenerationBench(SMALL, SMALL, SMALL) as bench:
            bench.pipeline_bench.hub.partition(node_id(1))
            asking = [asyncio.create_task(bench.ask([1], 5))]
            while not bench.broken:
                asking.append(asyncio.create_task(bench.ask([1], 5)))  # each of them wakes the session
                await asyncio.sleep(5)
            assert isinstance(bench.broken[0], StepDeadlineError)
            assert STEP_DEADLINE_S < asyncio.get_running_loop().time() < STEP_DEADLINE_S + 10
            await bench.generation.stop(LOST)
            assert all(error is LOST for error in await gathered(asking))

    quietly(scene())


LONG = tuple(range(7, 107))
"""A prompt of several chunks."""


def prompt_scores(prompt: Sequence[int]) -> list[TokenScore]:
    return [
        TokenScore(target, -float(row % VOCABULARY))
        for row, target in zip(final_rows(prompt), prompt[1:], strict=False)
    ]


@pytest.mark.parametrize("limits", [(WHOLE,), (SMALL, SMALL, SMALL)])
def test_a_prompt_is_scored_chunk_by_chunk_before_the_first_token(limits: tuple[int, ...]) -> None:
    async def scene() -> None:
        async with GenerationBench(*limits) as bench:
            asked = GenerationRequest("r", LONG, Sampling(0.0, top_logprobs=0), 3, prompt_logprobs=0)
            others = [asyncio.create_task(bench.ask([number], 30)) for number in range(6)]
            items = [item async for item in bench.generation.generate(asked)]
            parts = [item for item in items if item.prompt_scores]
            assert len(parts) > 1 and items[: len(parts)] == parts
            assert [score for item in parts for score in item.prompt_scores] == prompt_scores(LONG)
            tokens = answer(LONG, 3)
            assert [token for item in items for token in item.token_ids] == tokens
            scores = [score for item in items for score in item.scores]
            assert scores == [TokenScore(token, -float(token)) for token in tokens]
            assert await asyncio.gather(*others) == [answer([number], 30) for number in range(6)]

    quietly(scene())


def test_a_prompt_may_be_scored_and_nothing_follow() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            for prompt in (LONG, (5,)):
                asked = GenerationRequest("r", prompt, Sampling(0.0), 0, prompt_logprobs=0)
                items = [item async for item in bench.generation.generate(asked)]
                assert [score for item in items for score in item.prompt_scores] == prompt_scores(prompt)
                assert (items[-1].token_ids, items[-1].finish_reason) == ((), "length")
            with pytest.raises(InvalidRequestError, match="max_tokens"):
                await bench.ask([1], 0)

    quietly(scene())


@pytest.mark.parametrize("limits", [(WHOLE,), (SMALL, SMALL, SMALL)])
def test_an_embedding_is_the_mean_or_the_last_of_all_final_rows(limits: tuple[int, ...]) -> None:
    async def scene() -> None:
        async with GenerationBench(*limits) as bench:
            for prompt in (LONG, (5,)):
                rows = final_rows(prompt)
                mean = await bench.generation.embed(EmbeddingRequest("r", prompt))
                last = await bench.generation.embed(EmbeddingRequest("r", prompt, "last"))
                assert mean == (pytest.approx(sum(rows) / len(rows)),) and last == (rows[-1],)
            assert bench.activity[-1] == (0, 0)

    quietly(scene())


def test_choices_come_by_their_numbers_and_one_may_be_dropped() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            asked = GenerationRequest("r", (1, 2), Sampling(seed=7), 40, choices=3)
            tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
            finished: list[int] = []
            async for item in bench.generation.generate(asked):
                tokens[item.choice] += item.token_ids
                finished += [item.choice] if item.finish_reason else []
                if len(tokens[1]) == 5:
                    bench.generation.drop("r", 1)
                    bench.generation.drop("another", 0)
            assert tokens[0] == tokens[2] == answer([1, 2], 40)
            assert len(tokens[1]) in (5, 6) and sorted(finished) == [0, 2]
            assert bench.activity[-1] == (0, 0)

    quietly(scene())


@pytest.mark.parametrize("draft", [0, 1, 7, None])
@pytest.mark.parametrize("limits_bytes", [(WHOLE,), (SMALL, SMALL, SMALL)])
def test_guessed_tokens_come_one_by_one_as_if_none_had_been_guessed(
    limits_bytes: tuple[int, ...], draft: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic_engine, "VOCABULARY", 2)  # so that something can be guessed

    async def scene() -> None:
        async with GenerationBench(*limits_bytes, draft=draft) as bench:
            asked = GenerationRequest("r", (1, 0, 1), Sampling(0.0, top_logprobs=0), 60)
            items = [item async for item in bench.generation.generate(asked)]
            assert [item.token_ids for item in items] == [(token,) for token in answer([1, 0, 1], 60)]
            assert [item.finish_reason for item in items] == [None] * 59 + ["length"]
            assert [item.scores for item in items] == [
                (TokenScore(token, -float(token)),) for token in answer([1, 0, 1], 60)
            ]
            trips = bench.generation.trips
            if draft:
                assert trips.tokens_per_trip and trips.tokens_per_trip > 1.2
                assert trips.draft_acceptance and trips.draft_acceptance < 0.9
            assert (trips.draft_acceptance is None) == (draft == 0)

    quietly(scene())


def test_dropping_every_choice_ends_the_answer() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            asked = GenerationRequest("r", (1, 2), Sampling(), 200, choices=2)
            async for _ in bench.generation.generate(asked):
                bench.generation.drop("r", 0)
                bench.generation.drop("r", 1)
            assert bench.activity[-1] == (0, 0)

    quietly(scene())


def test_choices_have_seeds_of_their_own_and_come_all_or_not_at_all() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            seeds: list[int] = []
            read = ArithmeticEnds.read

            def watched(self: ArithmeticEnds, rows: list[int], readouts: Sequence[Readout]) -> list[RowOutput]:
                seeds.extend(draw.sampling.seed for readout in readouts for draw in readout.draws)
                return read(self, rows, readouts)

            bench.pipeline_bench.pipeline._ends.read = watched.__get__(bench.pipeline_bench.pipeline._ends)
            one = GenerationRequest("r", (1,), Sampling(seed=7), 1, choices=3)
            assert len([item async for item in bench.generation.generate(one)]) == 3
            assert sorted(seeds) == [7, 8, 9]
            waiting = [asyncio.create_task(bench.ask([number], 100)) for number in range(MAX_WAITING - 1)]
            await asyncio.sleep(0)
            before = bench.generation.waiting
            with pytest.raises(QueueFullError):
                await anext(bench.generation.generate(one))
            assert bench.generation.waiting == before
            assert len(await asyncio.gather(*waiting)) == MAX_WAITING - 1

    quietly(scene())


class ForgetfulEnds(ArithmeticEnds):
    def read(self, rows: list[int], readouts: Sequence[Readout]) -> list[RowOutput]:
        return []


def test_an_error_of_its_own_breaks_the_session_and_is_told_once() -> None:
    async def scene() -> None:
        async with GenerationBench(WHOLE) as bench:
            pipeline_bench = bench.pipeline_bench
            pipeline_bench.pipeline._ends = ForgetfulEnds(pipeline_bench.engine, pipeline_bench.plan)
            asking = asyncio.create_task(bench.ask([1], 5))
            await asyncio.sleep(1)
            assert [type(error) for error in bench.broken] == [StepMismatchError]
            await bench.generation.stop(LOST)
            assert await gathered([asking]) == [LOST]

    quietly(scene())
