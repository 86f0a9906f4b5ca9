from __future__ import annotations

import pytest

from commands.event_words import is_alarm, sentence, who
from vramancer_cli.telemetry.security import Action, Event, Kind, Why, make

NODE = "1a2b3c4d" * 4


def test_every_kind_has_its_sentence_even_where_all_is_unknown() -> None:
    sentences = [sentence(Event(kind, 0.0)) for kind in Kind]
    assert all(words and "{" not in words for words in sentences)
    assert len(set(sentences)) == len(sentences)


def test_every_reason_and_action_has_its_words() -> None:
    whys = {sentence(make(Kind.REFUSED, 0.0, {"why": why})) for why in Why.__args__}  # type: ignore[attr-defined]
    asked = {sentence(make(Kind.ADMIN_ASKED, 0.0, {"action": act})) for act in Action.__args__}  # type: ignore[attr-defined]
    assert len(whys) == 8 and not any("unknown" in words for words in whys)
    assert len(asked) == 4 and not any("something" in words for words in asked)


def test_a_sentence_says_who_how_and_from_where() -> None:
    event = Event(Kind.ADMITTED, 0.0, NODE, "attic", "192.0.2.7", "code in slot 4")
    assert sentence(event) == "attic (1a2b3c4d) was let in by code in slot 4, from 192.0.2.7"
    counted = Event(Kind.WRONG_KEY, 0.0, address="192.0.2.7", count=57)
    assert sentence(counted) == "a wrong API key, from 192.0.2.7 (57 times within a minute)"
    assert sentence(Event(Kind.EVENTS_LOST, 0.0, count=3)) == "3 events before this one were not kept"


@pytest.mark.parametrize(
    ("name", "node", "expected"),
    [("attic", NODE, "attic (1a2b3c4d)"), ("", NODE, "node 1a2b3c4d"), ("attic", "", "attic"), ("", "", "a node")],
)
def test_who(name: str, node: str, expected: str) -> None:
    assert who(name, node) == expected


def test_refusals_are_alarms_and_joining_is_none() -> None:
    assert is_alarm(Event(Kind.WRONG_CODE, 0.0)) and is_alarm(Event(Kind.COPY_REFUSED, 0.0))
    assert not is_alarm(Event(Kind.JOINED, 0.0)) and not is_alarm(Event(Kind.KEY_ADDED, 0.0))
