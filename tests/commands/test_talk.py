from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from commands.talk import FIRST_QUESTIONS
from tests.helpers.scripted_server import ScriptedDeployment, byte_level_folder, serving
from tests.helpers.verbs import Terminal, async_terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("model"))


async def see(terminal: Terminal, text: str) -> str:
    return await asyncio.to_thread(terminal.see, text)


async def test_a_talk(folder: Path, tmp_path: Path) -> None:
    deployment = ScriptedDeployment(folder)
    async with serving(deployment) as server, async_terminal(tmp_path, "chat", VRM_URL=server.url) as talk:
        for question in FIRST_QUESTIONS:
            await see(talk, question)
        await see(talk, "> ")
        talk.type("2\n")
        await see(talk, f"> {FIRST_QUESTIONS[1]}")
        await see(talk, deployment.text)
        await see(talk, "tokens/s")
        await see(talk, "> ")
        talk.type("2\n")  # once something was said, a number is a question like any other
        await see(talk, "tokens/s")
        await see(talk, "> ")
        talk.type("/reset\n")
        await see(talk, "Forgotten.")
        talk.type("and now?\n")
        await see(talk, "tokens/s")
        await see(talk, "> ")
        talk.type("/what\n")
        await see(talk, "/what is no command.")
        talk.type("/exit\n")
        assert await asyncio.to_thread(talk.end) == 0
    first, second, third = (len(request.prompt) for request in deployment.requests)
    assert second > first, "the second question carries what was said before"
    assert third < first, "after /reset it does not"


async def test_ctrl_c_stops_the_answer_and_not_the_talk(folder: Path, tmp_path: Path) -> None:
    deployment = ScriptedDeployment(folder, endless=True, pause_s=0.02, context_tokens=100_000)
    async with serving(deployment) as server, async_terminal(tmp_path, "chat", VRM_URL=server.url) as talk:
        await see(talk, "> ")
        talk.type("go on and on\n")
        await see(talk, "Machines share")
        talk.interrupt()
        await see(talk, "stopped")
        await asyncio.wait_for(deployment.aborted.wait(), 10)
        await see(talk, "> ")
        talk.interrupt()
        await see(talk, "/exit leaves.")
        await see(talk, "> ")  # what is typed before the prompt stands is lost
        talk.type("\x04")
        assert await asyncio.to_thread(talk.end) == 0


async def test_an_error_does_not_end_the_talk(folder: Path, tmp_path: Path) -> None:
    async with serving(ScriptedDeployment(folder)) as server:
        async with async_terminal(tmp_path, "chat", "--model", "nope", VRM_URL=server.url) as talk:
            await see(talk, "> ")
            talk.type("hello\n")
            await see(talk, "error: ")
            await see(talk, "> ")
            talk.type("/exit\n")
            assert await asyncio.to_thread(talk.end) == 0


async def test_nothing_there_ends_at_once(tmp_path: Path) -> None:
    async with async_terminal(tmp_path, "chat", VRM_URL="http://127.0.0.1:1") as talk:
        await see(talk, "No VRAMancer answers")
        assert await asyncio.to_thread(talk.end) == 3
