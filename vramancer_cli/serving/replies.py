"""OpenAI's reply JSON, whole and in chunks: one shape per endpoint, both told by the same answer. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vramancer_cli.models.readout import TokenScore
from vramancer_cli.serving.logprobs import TextLogprobs, chat_logprobs
from vramancer_cli.serving.token_bytes import TokenBytes

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


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice's answer grew by: text that became certain (perhaps none) with `tokens` more tokens.

    `scores`: of tokens that came, where they were asked for. The choice's last piece has the finish reason.
    """

    text: str
    tokens: int = 0
    finish_reason: FinishReason | None = None
    choice: int = 0
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """A whole choice. `scores` is None where nobody asked for them."""

    text: str
    finish_reason: FinishReason
    scores: tuple[TokenScore, ...] | None = None


class Shape(Protocol):
    """How one endpoint tells answers: `whole`, or for each choice `opening`, `delta`... and `closing`, then `usage`."""

    def whole(self, choices: Sequence[Told], usage: Usage) -> dict[str, Any]: ...
    def opening(self, choice: int) -> dict[str, Any] | None: ...
    def delta(self, piece: Piece) -> dict[str, Any]: ...
    def closing(self, choice: int, finish_reason: FinishReason) -> dict[str, Any]: ...
    def usage(self, usage: Usage) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ChatShape:
    envelope: Envelope
    tokens: TokenBytes

    def whole(self, choices: Sequence[Told], usage: Usage) -> dict[str, Any]:
        told = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if choice.scores is None else chat_logprobs(choice.scores, self.tokens),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return self.envelope.reply("chatcmpl", "chat.completion", told) | {"usage": usage.to_json()}

    def opening(self, choice: int) -> dict[str, Any]:
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def delta(self, piece: Piece) -> dict[str, Any]:
        logprobs = chat_logprobs(piece.scores, self.tokens) if piece.scores else None
        return self._chunk(piece.choice, {"content": piece.text}, logprobs)

    def closing(self, choice: int, finish_reason: FinishReason) -> dict[str, Any]:
        return self._chunk(choice, {}, finish_reason=finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self.envelope.chunk("chatcmpl", "chat.completion.chunk", [], usage)

    def _chunk(
        self,
        choice: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        told = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self.envelope.chunk("chatcmpl", "chat.completion.chunk", [told])


class TextShape:
    """Remembers, for each choice, how far its tokens' texts have come."""

    def __init__(self, envelope: Envelope, tokens: TokenBytes) -> None:
        self._envelope = envelope
        self._logprobs = defaultdict[int, TextLogprobs](lambda: TextLogprobs(tokens))

    def whole(self, choices: Sequence[Told], usage: Usage) -> dict[str, Any]:
        told = [
            _text_choice(index, choice.text, self._part(index, choice.scores), choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return self._envelope.reply("cmpl", "text_completion", told) | {"usage": usage.to_json()}

    def opening(self, choice: int) -> None:
        return None

    def delta(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(_text_choice(piece.choice, piece.text, self._part(piece.choice, piece.scores or None)))

    def closing(self, choice: int, finish_reason: FinishReason) -> dict[str, Any]:
        return self._chunk(_text_choice(choice, "", finish_reason=finish_reason))

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self._envelope.chunk("cmpl", "text_completion", [], usage)

    def _part(self, choice: int, scores: tuple[TokenScore, ...] | None) -> dict[str, Any] | None:
        return None if scores is None else self._logprobs[choice].part(scores)

    def _chunk(self, told: dict[str, Any]) -> dict[str, Any]:
        return self._envelope.chunk("cmpl", "text_completion", [told])


def _text_choice(
    index: int, text: str, logprobs: dict[str, Any] | None = None, finish_reason: FinishReason | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def model_card(name: str, created_s: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created_s, "owned_by": "vramancer"}
