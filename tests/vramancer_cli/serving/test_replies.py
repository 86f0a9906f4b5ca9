from __future__ import annotations

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from vramancer_cli.serving.replies import ChatShape, Envelope, Piece, TextShape, Told, Usage
from vramancer_cli.serving.token_bytes import TokenBytes

ENVELOPE = Envelope("ab12", 1_700_000_000, "m")
USAGE = Usage(3, 4)
HI = Told("hi", "stop")
TOKENS = TokenBytes({1: "h", 2: "i"}.get, None, frozenset(), frozenset())


def test_chat_replies_are_what_the_official_client_declares() -> None:
    whole = ChatCompletion.model_validate(ChatShape(ENVELOPE, TOKENS).whole([HI], USAGE), strict=True)
    assert whole.id == "chatcmpl-ab12"
    assert whole.choices[0].message.content == "hi"
    assert whole.usage is not None and whole.usage.total_tokens == 7
    shape = ChatShape(ENVELOPE, TOKENS)
    for chunk in (shape.opening(0), shape.delta(Piece("hi")), shape.closing(0, "length"), shape.usage(USAGE)):
        assert ChatCompletionChunk.model_validate(chunk, strict=True).object == "chat.completion.chunk"


def test_text_replies_are_what_the_official_client_declares() -> None:
    shape = TextShape(ENVELOPE, TOKENS)
    assert shape.opening(0) is None
    assert Completion.model_validate(shape.whole([HI], USAGE), strict=True).choices[0].text == "hi"
    assert shape.delta(Piece("x"))["choices"][0]["finish_reason"] is None
    assert shape.closing(0, "stop")["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


def test_usage_is_a_key_of_every_chunk_once_asked_for_and_of_none_otherwise() -> None:
    asked = ChatShape(Envelope("ab12", 0, "m", include_usage=True), TOKENS)
    assert asked.delta(Piece("x"))["usage"] is None
    assert asked.usage(USAGE)["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert asked.usage(USAGE)["choices"] == []
    assert "usage" not in ChatShape(ENVELOPE, TOKENS).delta(Piece("x"))
