from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.scripted_server import ScriptedDeployment, byte_level_folder, serving
from tests.helpers.verbs import run_verb
from vramancer_cli.errors import NodeLostError
from vramancer_cli.models.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("model"))


async def test_one_question_one_answer(folder: Path, tmp_path: Path) -> None:
    deployment = ScriptedDeployment(folder, text="Layer by layer.\nOne model.")
    async with serving(deployment) as server:
        ran = await run_verb(
            tmp_path, "chat", "What?", "--system", "Be brief.", "--temperature", "0", VRM_URL=server.url
        )
        all_of_them = ("--temperature", "0.5", "--top-p", "0.9", "--seed", "-4", "--max-tokens", "40")
        await run_verb(tmp_path, "chat", "What?", *all_of_them, VRM_URL=server.url)
    assert (ran.code, ran.out) == (0, "Layer by layer.\nOne model.\n")
    assert "tokens/s" in ran.err
    assert f"{len(deployment.tokens)} tokens" in ran.err
    assert deployment.requests[0].sampling.temperature == 0
    assert deployment.requests[1].sampling == Sampling(0.5, 0.9, seed=2**63 - 4)
    assert deployment.requests[1].max_tokens == 40


async def test_the_question_may_come_on_stdin(folder: Path, tmp_path: Path) -> None:
    deployment = ScriptedDeployment(folder)
    async with serving(deployment) as server:
        piped = await run_verb(tmp_path, "chat", stdin="What is\na layer?\n", VRM_URL=server.url)
        typed = await run_verb(tmp_path, "chat", "What is\na layer?", VRM_URL=server.url)
        nothing = await run_verb(tmp_path, "chat", stdin=" \n", VRM_URL=server.url)
    assert piped.out == typed.out == deployment.text + "\n"
    assert deployment.requests[0].prompt == deployment.requests[1].prompt
    assert nothing.code == 2
    assert len(nothing.error_lines) == 1


async def test_a_cut_answer_fails(folder: Path, tmp_path: Path) -> None:
    lost = NodeLostError("The node 'attic' was lost.", node="attic")
    async with serving(ScriptedDeployment(folder, text="Half of", error=lost)) as server:
        ran = await run_verb(tmp_path, "chat", "What?", VRM_URL=server.url)
    assert ran.code == 1
    assert ran.out.startswith("Half")
    assert "error: The node 'attic' was lost." in ran.err
    assert "tokens/s" not in ran.err


async def test_an_answer_cannot_command_the_terminal(folder: Path, tmp_path: Path) -> None:
    async with serving(ScriptedDeployment(folder, text="a\x1b[2Jb\x07c\td\n")) as server:
        ran = await run_verb(tmp_path, "chat", "What?", VRM_URL=server.url)
    assert ran.out == "a[2Jbc\td\n"


async def test_an_unknown_model_is_named(folder: Path, tmp_path: Path) -> None:
    async with serving(ScriptedDeployment(folder)) as server:
        ran = await run_verb(tmp_path, "chat", "What?", "--model", "nope", VRM_URL=server.url)
    assert ran.code == 1
    assert "nope" in ran.err
    assert len(ran.error_lines) == 1
