"""Clients that read an answer on a thread of their own, while the test hurts the cluster."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from openai import APIError, OpenAI

MODEL = "vramancer-guide"


@dataclass(frozen=True)
class Question:
    """Of a completion that has exactly `tokens` tokens."""

    prompt: str
    tokens: int = 300
    temperature: float = 0.0
    seed: int = 0
    stream: bool = True

    def arguments(self) -> dict[str, Any]:
        sampling = {"temperature": self.temperature, "seed": self.seed}
        length = {"max_tokens": self.tokens, "extra_body": {"min_tokens": self.tokens}}
        return {"model": MODEL, "prompt": self.prompt, "stream": self.stream, **sampling, **length}


@dataclass
class Asked:
    """A question on its way. `pieces`: when each text came, and the text; `error`: the code of what ended it."""

    url: str
    question: Question
    pieces: list[tuple[float, str]] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    error_message: str = ""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._ask, name="asking")
        self._thread.start()

    def _ask(self) -> None:
        with OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            try:
                told = client.completions.create(**self.question.arguments())
                for part in told if self.question.stream else [told]:
                    self._take(part.choices[0])
            except APIError as error:
                self.error, self.error_message = error.code or type(error).__name__, error.message

    def _take(self, choice: Any) -> None:
        if choice.text:
            self.pieces.append((time.monotonic(), choice.text))
        self.finish_reason = choice.finish_reason or self.finish_reason

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def longest_pause_s(self) -> float:
        times = [at for at, _ in self.pieces]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def wait_for_pieces(self, count: int, deadline_s: float = 30.0) -> None:
        until = time.monotonic() + deadline_s
        while len(self.pieces) < count:
            assert time.monotonic() < until, f"only {len(self.pieces)} pieces came: {self.error} {self.error_message}"
            time.sleep(0.002)

    def join(self, deadline_s: float = 60.0) -> Asked:
        self._thread.join(deadline_s)
        assert not self._thread.is_alive(), "the answer never ended"
        return self


def ask(url: str, question: Question) -> str:
    """The whole answer. AssertionError when there is none."""
    asked = Asked(url, question).join()
    assert asked.error is None, asked.error_message
    assert asked.finish_reason == "length"
    return asked.text
