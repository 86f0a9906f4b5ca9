"""The text that the built-in model is trained on: dialogues composed from the topics in guide_topics/, by templates.

Everything here is a pure function of the topic files and a seed: the same seed gives the same dialogues in every
process. Never imports torch, transformers or the project itself.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

TOPICS_FOLDER: Final = Path(__file__).with_name("guide_topics")
_INNERMOST_CHOICE: Final = re.compile(r"\(([^()]*)\)")
_WORD: Final = re.compile(r"\{(\w+)\}")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s")

Language = Literal["en", "fr"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


Dialogue = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Wording:
    """Patterns of one question in one language, and its answer. A `plain` one gets no question mark."""

    patterns: tuple[str, ...]
    answer: str
    language: Language
    plain: bool


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    weight: float
    wordings: tuple[Wording, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """All that the topic files say. `shorter` and `again` are patterns of follow-up questions."""

    topics: tuple[Topic, ...]
    before: dict[Language, str]
    after: str
    neutral_systems: tuple[str, ...]
    brief_systems: tuple[str, ...]
    shorter: str
    again: str


def read_script(folder: Path = TOPICS_FOLDER) -> Script:
    """Reads every .toml file of the folder, in the order of their names. Raises KeyError where a key is missing."""
    files = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.toml"))}
    frame = files.pop("words")
    words: dict[str, str] = frame["words"]
    return Script(
        topics=tuple(_topic(entry, words) for data in files.values() for entry in data["topic"]),
        before={"en": frame["opening"]["before"], "fr": frame["opening"]["fr_before"]},
        after=frame["opening"]["after"],
        neutral_systems=tuple(frame["systems"]["neutral"]),
        brief_systems=tuple(frame["systems"]["brief"]),
        shorter=frame["follow_ups"]["shorter"],
        again=frame["follow_ups"]["again"],
    )


def _topic(entry: dict[str, Any], words: dict[str, str]) -> Topic:
    languages: tuple[tuple[Language, str], ...] = (("en", ""), ("fr", "fr_"))
    wordings = tuple(
        Wording(
            patterns=tuple(_with_words(pattern, words) for pattern in entry[prefix + "ask"]),
            answer=entry[prefix + "answer"],
            language=language,
            plain=entry.get("plain", False),
        )
        for language, prefix in languages
        if prefix + "ask" in entry
    )
    return Topic(entry["name"], entry.get("weight", 1.0), wordings)


def _with_words(pattern: str, words: dict[str, str]) -> str:
    while _WORD.search(pattern):
        pattern = _WORD.sub(lambda match: words[match[1]], pattern)
    return pattern


def expand(pattern: str, rng: random.Random) -> str:
    """Chooses one of each `(one|of|these)`, innermost first."""
    while match := _INNERMOST_CHOICE.search(pattern):
        pattern = pattern[: match.start()] + rng.choice(match[1].split("|")) + pattern[match.end() :]
    return pattern


def first_sentence(answer: str) -> str:
    return _SENTENCE_END.split(answer, maxsplit=1)[0]


def compose(count: int, seed: int, script: Script | None = None) -> list[Dialogue]:
    """`count` dialogues: most of one turn, some of several, some with a system message."""
    script = script or read_script()
    rng = random.Random(seed)
    weights = [topic.weight for topic in script.topics]
    return [_dialogue(script, weights, rng) for _ in range(count)]


def _dialogue(script: Script, weights: list[float], rng: random.Random) -> Dialogue:
    kind = rng.random()
    brief = 0.12 < kind < 0.2
    if brief:
        system = (Message("system", rng.choice(script.brief_systems)),)
    elif kind < 0.2 or kind > 0.9:
        system = (Message("system", rng.choice(script.neutral_systems)),)
    else:
        system = ()
    turns = rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 4))
    topics = rng.choices(script.topics, weights, k=turns)
    return system + tuple(message for topic in topics for message in _turn(script, topic, brief, rng))


def _turn(script: Script, topic: Topic, brief: bool, rng: random.Random) -> Iterator[Message]:
    """One question with its answer, sometimes with a wish to hear it again or in short."""
    wording = topic.wordings[-1] if rng.random() < 0.2 else topic.wordings[0]
    short = first_sentence(wording.answer)
    yield Message("user", ask(script, wording, rng))
    yield Message("assistant", short if brief else wording.answer)
    follow_up = rng.random()
    if wording.language == "en" and not brief and follow_up < 0.06:
        pattern, answer = (script.shorter, short) if follow_up < 0.03 else (script.again, wording.answer)
        yield Message("user", _typed(expand(pattern, rng), "", rng))
        yield Message("assistant", answer)


def ask(script: Script, wording: Wording, rng: random.Random) -> str:
    """One way to ask, as people type it: with or without capital, question mark, greeting, slip of a finger."""
    question = expand(rng.choice(wording.patterns), rng)
    if wording.plain:
        return _typed(question, "", rng)
    question = expand(script.before[wording.language], rng) + question
    if wording.language == "en":
        question += expand(script.after, rng)
    return _typed(question, " ?" if wording.language == "fr" and rng.random() < 0.5 else "?", rng)


def _typed(text: str, mark: str, rng: random.Random) -> str:
    if rng.random() < 0.06:
        text = _with_slip(text, rng)
    if rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    elif rng.random() < 0.5:
        text = text.lower()
    return text + (mark if rng.random() < 0.75 else "")


def _with_slip(text: str, rng: random.Random) -> str:
    """Two neighbouring letters of one word change places, or one is lost."""
    at = rng.randrange(max(1, len(text) - 2))
    pair = text[at : at + 2]
    if not pair.isalpha():
        return text
    return text[:at] + (pair[::-1] if rng.random() < 0.5 else pair[0]) + text[at + 2 :]


def digest(dialogues: Iterable[Dialogue]) -> str:
    """SHA-256 over all roles and contents, to prove that two runs composed the same text."""
    sha = hashlib.sha256()
    for dialogue in dialogues:
        for message in dialogue:
            sha.update(f"{message.role}\0{message.content}\0".encode())
        sha.update(b"\n")
    return sha.hexdigest()
