"""OpenAI's reply JSON, whole and in chunks: one shape per endpoint, both told by the same answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object of one answer repeats. `request_id` is bare hex; the shapes put their prefix before it."""

    request_id: str
    created_s: int
    model: str
    include_usage: bool = False

    def reply(self, prefix: str, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": list(choices),
        }

    def chunk(
        self, prefix: str, kind: str, choices: Sequence[dict[str, Any]], usage: Usage | None = None
    ) -> dict[str, Any]:
        """With `include_usage`, every chunk carries the key, and only the last one a value."""
        reply = self.reply(prefix, kind, choices)
        return reply | {"usage": usage.to_json() if usage else None} if self.include_usage else reply


class Shape(Protocol):
    """How one endpoint tells an answer: `whole`, or `opening`, `delta`..., `closing` and perhaps `usage`."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> dict[str, Any]: ...
    def opening(self) -> dict[str, Any] | None: ...
    def delta(self, text: str) -> dict[str, Any]: ...
    def closing(self, finish_reason: FinishReason) -> dict[str, Any]: ...
    def usage(self, usage: Usage) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ChatShape:
    envelope: Envelope

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self.envelope.reply("chatcmpl", "chat.completion", [choice]) | {"usage": usage.to_json()}

    def opening(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text}, None)

    def closing(self, finish_reason: FinishReason) -> dict[str, Any]:
        return self._chunk({}, finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self.envelope.chunk("chatcmpl", "chat.completion.chunk", [], usage)

    def _chunk(self, delta: dict[str, str], finish_reason: FinishReason | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self.envelope.chunk("chatcmpl", "chat.completion.chunk", [choice])


@dataclass(frozen=True, slots=True)
class TextShape:
    envelope: Envelope

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> dict[str, Any]:
        reply = self.envelope.reply("cmpl", "text_completion", [_text_choice(text, finish_reason)])
        return reply | {"usage": usage.to_json()}

    def opening(self) -> None:
        return None

    def delta(self, text: str) -> dict[str, Any]:
        return self.envelope.chunk("cmpl", "text_completion", [_text_choice(text, None)])

    def closing(self, finish_reason: FinishReason) -> dict[str, Any]:
        return self.envelope.chunk("cmpl", "text_completion", [_text_choice("", finish_reason)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self.envelope.chunk("cmpl", "text_completion", [], usage)


def _text_choice(text: str, finish_reason: FinishReason | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def model_card(name: str, created_s: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created_s, "owned_by": "vramancer"}
