"""Answers asked for over HTTP as a user asks for them, and when each of their tokens came.

Standard library only. A thread per stream, which only notes times; what came is looked at when all is over.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

SILENCE_S: Final = 240.0


class NotMeasuredError(Exception):
    """What ran was not what the row says."""


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: when it was asked for, and when each token's text came, in seconds of one clock."""

    asked_s: float
    tokens_s: tuple[float, ...]
    prompt_tokens: int

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt, by the time until the first token came."""
        return self.prompt_tokens / (self.tokens_s[0] - self.asked_s)

    @property
    def decode_rate(self) -> float:
        """Tokens a second behind the first."""
        return (len(self.tokens_s) - 1) / (self.tokens_s[-1] - self.tokens_s[0])


def crowd_rate(streams: Sequence[Told], at_once: int) -> float:
    """Tokens a second of all streams together, while the middle half of all their tokens came.

    Raises NotMeasuredError where streams that are no more than may run `at_once` did not all run then.
    """
    arrived_s = sorted(at for told in streams for at in told.tokens_s)
    begin, end = arrived_s[len(arrived_s) // 4], arrived_s[3 * len(arrived_s) // 4]
    running = sum(told.tokens_s[0] <= begin and told.tokens_s[-1] >= end for told in streams)
    if running < len(streams) <= at_once:
        raise NotMeasuredError(f"Only {running} of {len(streams)} streams ran all the time.")
    return sum(begin < at <= end for at in arrived_s) / (end - begin)


def fresh_prompt(vocabulary: int, tokens: int) -> list[int]:
    """Token ids that no cache has seen."""
    return [random.randrange(vocabulary) for _ in range(tokens)]


def ask(url: str, model: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[Told]:
    """One greedy answer of `tokens` tokens to each prompt, all at once. Raises NotMeasuredError for another count."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: _stream(url, model, prompt, tokens), prompts))


def _stream(url: str, model: str, prompt: Sequence[int], tokens: int) -> Told:
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0.0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    sent, address = json.dumps(body).encode(), urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SILENCE_S)
    asked_s = time.perf_counter()
    connection.request("POST", "/v1/completions", sent, {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        lines = [(time.perf_counter(), line) for line in response if line.startswith(b"data: ")]
    connection.close()
    return _told(asked_s, lines, len(prompt), tokens)


def _told(asked_s: float, lines: Sequence[tuple[float, bytes]], prompt_tokens: int, tokens: int) -> Told:
    """Every token of these models is text by itself, so an event with text is a token."""
    events = [(at, json.loads(line[6:])) for at, line in lines if not line.startswith(b"data: [DONE]")]
    tokens_s = tuple(at for at, event in events if _text(event))
    usage = next((event["usage"] for _, event in events if event.get("usage")), None)
    wanted = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    if usage is None or any(usage[name] != count for name, count in wanted.items()) or len(tokens_s) != tokens:
        raise NotMeasuredError(f"{tokens} tokens were asked for, {len(tokens_s)} came; usage: {usage}; {lines[-1:]}")
    return Told(asked_s, tokens_s, prompt_tokens)


def _text(event: dict[str, Any]) -> str:
    return "".join(choice.get("text") or "" for choice in event.get("choices", ()))
