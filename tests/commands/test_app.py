from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.verbs import InProcess
from vramancer_cli import __version__


@pytest.fixture
def verb_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(tmp_path, monkeypatch, capsys)


VERBS = [
    "start", "join", "stop", "invite", "keys", "status", "chat", "doctor", "config", "nodes", "cache", "service",
    "audit",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_examples_and_fits_80_columns(verb: str, verb_of: InProcess) -> None:
    ran = verb_of(verb, "--help")
    assert ran.code == 0
    assert "\n Examples\n" in "\n".join(line.rstrip() for line in ran.out.splitlines())
    examples = ran.out.split("Examples")[1]
    assert f"   vramancer {verb}" in examples, "examples are indented"
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    assert "\x1b" not in ran.out
    assert "--api-token" not in ran.out, "a token on a command line is seen by every user of the machine"


def test_the_program_alone_shows_its_verbs(verb_of: InProcess) -> None:
    ran = verb_of()
    assert ran.code == 0
    for verb in VERBS:
        assert f" {verb} " in ran.out


def test_version(verb_of: InProcess) -> None:
    ran = verb_of("--version")
    assert ran.code == 0
    assert re.fullmatch(
        rf"vramancer {re.escape(__version__)}, build source, torch 2\.13\.0\S*, Python 3\.\d+\.\d+, \S+ \S+\n", ran.out
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["strat"], "Did you mean 'start'"),
        (["start", "--portt", "1"], "--portt"),
        (["start", "--port", "abc"], "Invalid value for '--port': 'abc' is not a number from 0 to 65535."),
        (["start", "--memory", "six"], "6GiB"),
        (["start", "--dtype", "int3"], "bfloat16"),
        (["chat", "--temperature", "9", "hello"], "from 0 to 2"),
        (["chat", "--temperature", "nan", "hello"], "from 0 to 2"),
        (["chat", "--top-p", "1.5", "hello"], "from 0 to 1"),
        (["chat", "--seed", "lucky", "hello"], "whole number"),
        (["chat", "--max-tokens", "0", "hello"], "from 1 to"),
        (["status", "--url", "ftp://x"], "http://127.0.0.1:5000"),
        (["join", "a/b", "--code", "4-otter-maple-drum"], "is not an address"),
        (["join", "desk", "--auto-discover"], "exclude each other"),
    ],
)
def test_wrong_use_is_one_line_and_2(arguments: list[str], words: str, verb_of: InProcess) -> None:
    ran = verb_of(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.error_lines) == 1
    assert ran.err.startswith("error: ")
    assert words in ran.err
