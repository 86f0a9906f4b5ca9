"""Log-probabilities as OpenAI's replies tell them: chat style, and the four lists of /v1/completions. Pure.

A token that is not whole text, half a character of several bytes, is told by its bytes: chat style writes them as
\\xNN and lists them in `bytes`; the older lists write bytes:\\xNN.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from vramancer_cli.models.readout import TokenScore
from vramancer_cli.serving.token_bytes import TokenBytes


def chat_logprobs(scores: Iterable[TokenScore], tokens: TokenBytes) -> dict[str, Any]:
    content = [
        _chat_entry(score.token, score.logprob, tokens)
        | {"top_logprobs": [_chat_entry(token, logprob, tokens) for token, logprob in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _chat_entry(token: int, logprob: float | None, tokens: TokenBytes) -> dict[str, Any]:
    raw = tokens.of(token)
    return {"token": written(raw, prefix=""), "logprob": logprob, "bytes": list(raw)}


class TextLogprobs:
    """The lists of one choice, part after part: where a token's text begins depends on all tokens before it.

    `text_offset` counts characters of the choice's own text, which begins with the prompt where that is echoed.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def part(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        return {
            "tokens": [self._written(score.token) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [self._top(score) for score in scores],
            "text_offset": [self._offset(score.token) for score in scores],
        }

    def _written(self, token: int) -> str:
        return written(self._tokens.of(token), prefix="bytes:")

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        """The likeliest, and the chosen one too; the first token of a prompt has none."""
        if score.logprob is None:
            return None
        return {self._written(token): logprob for token, logprob in (*score.top, (score.token, score.logprob))}

    def _offset(self, token: int) -> int:
        begins = self._characters
        if self._tokens.is_text(token):
            self._characters += len(self._decoder.decode(self._tokens.of(token)))
        return begins


def written(raw: bytes, prefix: str) -> str:
    """The text of whole characters; else every byte as \\xNN, after `prefix`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in raw)
