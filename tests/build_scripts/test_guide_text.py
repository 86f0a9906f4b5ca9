"""The composed text: the same in every process, and complete."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts.guide_text import Script, ask, compose, digest, expand, first_sentence, read_script

PRINT_DIGEST = "from build_scripts.guide_text import compose, digest; print(digest(compose(2000, 5)))"


@pytest.fixture(scope="module")
def script() -> Script:
    return read_script()


def _digest_in_a_process(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST], cwd=root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_text_does_not_depend_on_the_process() -> None:
    assert _digest_in_a_process("1") == _digest_in_a_process("2") == digest(compose(2000, 5))


def test_another_seed_makes_another_text() -> None:
    assert digest(compose(50, 1)) != digest(compose(50, 2))


def test_expand_chooses_from_nested_choices() -> None:
    rng = random.Random(0)
    assert {expand("a (b|c (d|e))!", rng) for _ in range(60)} == {"a b!", "a c d!", "a c e!"}


def test_first_sentence() -> None:
    assert first_sentence("See `config.json` first. Then the rest.") == "See `config.json` first."


def test_every_pattern_expands_to_a_question(script: Script) -> None:
    rng = random.Random(0)
    for wording in (wording for topic in script.topics for wording in topic.wordings):
        for _ in range(20):
            question = ask(script, wording, rng)
            assert question.strip() and not set(question) & set("{}()|"), question


def test_names_are_unique_and_no_question_has_two_answers(script: Script) -> None:
    names = [topic.name for topic in script.topics]
    assert len(names) == len(set(names))
    answers: dict[str, str] = {}
    for wording in (wording for topic in script.topics for wording in topic.wordings):
        for question in (expand(pattern, random.Random(n)) for pattern in wording.patterns for n in range(20)):
            assert answers.setdefault(question.lower(), wording.answer) == wording.answer, question


def test_dialogues_alternate_and_cover_every_topic_and_kind(script: Script) -> None:
    dialogues = compose(3000, 5, script)
    for dialogue in dialogues:
        roles = [message.role for message in dialogue]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
    said = {message.content for dialogue in dialogues for message in dialogue if message.role == "assistant"}
    assert {wording.answer for topic in script.topics for wording in topic.wordings} <= said
    assert {len(dialogue) for dialogue in dialogues} >= {2, 3, 4, 5, 6}
