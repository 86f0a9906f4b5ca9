"""Clients that ask until they are told to stop, and write down what came: raw HTTP, so that nothing is hidden."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from tests.helpers.streams import Question
from tests.soak.history import Told

ANSWER_S = 330.0
"""Longer than the head lets any answer wait."""
LEAVES = 0.15
"""The share of requests whose client hangs up in the middle."""

PROMPTS = ("Tell me about layers", "How do I join", "What is a plan", "What does the head do")
QUESTIONS = tuple(
    Question(prompt, tokens, temperature, seed=5, stream=stream)
    for prompt in PROMPTS
    for tokens, temperature in ((30, 0.0), (120, 0.8))
    for stream in (True, False)
)


@dataclass(slots=True)
class _Answer:
    """What has come so far."""

    text: str = ""
    code: str = ""
    finishes: int = 0
    dones: int = 0
    after: int = 0
    pause_s: float = 0.0

    def take(self, data: str) -> None:
        """One event's data."""
        if self.dones or self.code:
            self.after += 1
        elif data == "[DONE]":
            self.dones += 1
        else:
            self.take_value(json.loads(data))

    def take_value(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self.code = value["error"]["code"] or value["error"]["type"]
            return
        choice = value["choices"][0]
        self.after += bool(self.finishes and choice["text"])
        self.text += choice["text"]
        self.finishes += choice["finish_reason"] is not None


def ask(url: str, question: Question, began_s: float, leave_after: int | None = None) -> Told:
    """One request, to its end, or until so many events have come."""
    at = urlsplit(url)
    started = time.monotonic()
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=ANSWER_S)
    told, answer = Told(question, started - began_s, 0.0, "cut"), _Answer()
    with suppress(OSError, http.client.HTTPException):
        told = _told(connection, question, told, answer, leave_after)
    connection.close()
    fields = {name: getattr(answer, name) for name in ("text", "code", "finishes", "dones", "after", "pause_s")}
    return replace(told, took_s=time.monotonic() - started, **fields)


def _told(
    connection: http.client.HTTPConnection, question: Question, told: Told, answer: _Answer, leave_after: int | None
) -> Told:
    arguments = question.arguments()
    body = json.dumps(arguments | arguments.pop("extra_body"))
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    if leave_after is not None and not question.stream:
        time.sleep(leave_after / 100)
        return replace(told, ending="cancelled")
    response = connection.getresponse()
    if response.status != 200 or not question.stream:
        answer.take_value(json.loads(response.read()))
        return replace(told, ending="refused" if answer.code else "done")
    for count, data in enumerate(_events(response, answer)):
        answer.take(data)
        if leave_after is not None and count >= leave_after:
            connection.sock.shutdown(socket.SHUT_RDWR) if connection.sock else None
            return replace(told, ending="cancelled")
    ending = "failed" if answer.code else "done" if answer.dones else "cut"
    return replace(told, ending=ending)


def _events(response: http.client.HTTPResponse, answer: _Answer) -> Iterator[str]:
    last_s = time.monotonic()
    while line := response.readline():
        if line.startswith(b"data: "):
            now_s = time.monotonic()
            answer.pause_s, last_s = max(answer.pause_s, now_s - last_s), now_s
            yield line[6:].decode().strip()


@dataclass
class Traffic:
    """`clients` threads, each with its own seed, from `start` to `stop`."""

    url: str
    seed: int
    clients: int = 4
    told: list[Told] = field(default_factory=list[Told])

    def start(self) -> None:
        self._began_s, self._ended = time.monotonic(), threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Whether every request has ended."""
        self._ended.set()
        for thread in self._threads:
            thread.join(ANSWER_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _ask(self, number: int) -> None:
        rng = random.Random(f"{self.seed}:{number}")
        while not self._ended.is_set():
            leave_after = rng.randrange(20) if rng.random() < LEAVES else None
            told = ask(self.url, rng.choice(QUESTIONS), self._began_s, leave_after)
            self.told.append(told)
            if told.ending in ("refused", "cut"):
                self._ended.wait(1.0)  # as Retry-After says


__all__ = ["QUESTIONS", "Traffic", "ask"]
