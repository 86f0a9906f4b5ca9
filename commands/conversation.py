"""A conversation with the model: what was said so far, and one answer at a time, written to stdout as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from commands.terminal import notes, plain
from vramancer_cli.serving.client import ApiClient, ChatDelta


@dataclass(slots=True)
class Answer:
    """An answer and its figures. `completion_tokens` None: the server did not get to count (the answer was stopped)."""

    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int | None = None
    first_s: float | None = None
    total_s: float = 0.0
    interrupted: bool = False

    @property
    def tokens_per_s(self) -> float | None:
        """Over the time between the first piece and the last; None where there is nothing to measure."""
        if self.completion_tokens is None or self.first_s is None or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / max(self.total_s - self.first_s, 1e-6)


@dataclass(slots=True)
class Conversation:
    """`messages` holds only what both sides have: a question that got no answer is not in it."""

    client: ApiClient
    model: str | None = None
    sampling: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def reset(self) -> None:
        self.messages.clear()

    def ask(self, question: str, *, stoppable: bool = False) -> Answer:
        """Asks, and writes the answer to stdout as it comes. `stoppable`: Ctrl-C ends the answer, which then says so.

        Raises what ApiClient.chat raises.
        """
        asked = {"role": "user", "content": question}
        opening = [{"role": "system", "content": self.system}] if self.system else []
        answer = self._stream([*opening, *self.messages, asked], stoppable=stoppable)
        if answer.text:
            self.messages += [asked, {"role": "assistant", "content": answer.text}]
        return answer

    def _stream(self, messages: list[dict[str, str]], *, stoppable: bool) -> Answer:
        answer, began = Answer(), time.monotonic()
        deltas = self.client.chat(messages, model=self.model, **self.sampling)
        try:
            for delta in deltas:
                _take(answer, delta, time.monotonic() - began)
        except KeyboardInterrupt:
            if not stoppable:
                raise
            answer.interrupted = True
        finally:
            deltas.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator: closing it hangs up
            _end_line(answer)
        return answer


def _take(answer: Answer, delta: ChatDelta, since_s: float) -> None:
    if delta.text:
        sys.stdout.write(plain(delta.text, lines=True))
        sys.stdout.flush()
        answer.first_s = since_s if answer.first_s is None else answer.first_s
        answer.total_s = since_s
        answer.text += delta.text
    answer.finish_reason = delta.finish_reason or answer.finish_reason
    if delta.completion_tokens is not None:
        answer.completion_tokens = delta.completion_tokens


def _end_line(answer: Answer) -> None:
    if answer.interrupted or (answer.text and not answer.text.endswith("\n")):  # a terminal has just echoed ^C
        sys.stdout.write("\n")
        sys.stdout.flush()


def show_figures(answer: Answer) -> None:
    """Tokens, speed and time to the first word, on stderr."""
    words: list[str] = []
    if answer.interrupted:
        words.append("stopped")
    if answer.finish_reason == "length":
        words.append("cut: no room for more tokens")
    if answer.completion_tokens is not None:
        words.append(f"{answer.completion_tokens} tokens")
    if answer.tokens_per_s is not None:
        words.append(f"{answer.tokens_per_s:.1f} tokens/s")
    if answer.first_s is not None:
        words.append(f"first after {answer.first_s:.2f} s")
    notes().print(", ".join(words) or "The answer is empty.", style="dim", markup=False, soft_wrap=True)
