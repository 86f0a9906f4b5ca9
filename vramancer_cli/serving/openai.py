"""OpenAI's request JSON as checked values. Pure: bytes in, values or InvalidRequestError out.

Which fields count: those below are honoured; those in the two `UNSUPPORTED` tables are known but not built, and
refused by name unless they hold their default; every other key is ignored, because clients send keys of their own.
Shapes after the public OpenAI API reference (chat completions, completions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from vramancer_cli.errors import InvalidRequestError

Body = Mapping[str, Any]

ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 512
MAX_SEED: Final = 2**63
DEFAULT_COMPLETION_TOKENS: Final = 16

_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
CHAT_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = _UNSUPPORTED | {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Parameter -> the values that mean "leave it off"; null always does."""
TEXT_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = _UNSUPPORTED | {
    "logprobs": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What both endpoints share. `max_tokens` and `seed` are None where the request names none."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatQuery:
    model: str
    messages: tuple[ChatMessage, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class TextQuery:
    """`prompt` is text, or token ids of the model's own vocabulary."""

    model: str
    prompt: str | tuple[int, ...]
    options: Options


def parse_chat(raw: bytes) -> ChatQuery:
    """Raises InvalidRequestError naming the parameter at fault."""
    body = _object(raw)
    _refuse_unsupported(body, CHAT_UNSUPPORTED)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return ChatQuery(_model(body), _messages(body.get("messages")), _options(body, _max_tokens(body, limit)))


def parse_text(raw: bytes) -> TextQuery:
    """Raises InvalidRequestError naming the parameter at fault."""
    body = _object(raw)
    _refuse_unsupported(body, TEXT_UNSUPPORTED)
    max_tokens = _max_tokens(body, "max_tokens") or DEFAULT_COMPLETION_TOKENS
    return TextQuery(_model(body), _prompt(body.get("prompt")), _options(body, max_tokens))


def _object(raw: bytes) -> Body:
    try:
        body = msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidRequestError("The request's JSON is nested too deeply.", code="invalid_json") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The request is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("The request must be a JSON object.", code="invalid_json")
    return cast("dict[str, Any]", body)


def _refuse_unsupported(body: Body, unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    for name in unsupported.keys() & body.keys():
        if body[name] is not None and not any(_same(body[name], harmless) for harmless in unsupported[name]):
            sentence = f"'{name}' is not supported by this server other than with its default value."
            raise InvalidRequestError(sentence, param=name, code="unsupported_parameter")


def _same(value: Any, harmless: Any) -> bool:
    """Equality in JSON's sense, where true is not 1."""
    return isinstance(value, bool) == isinstance(harmless, bool) and value == harmless


def _model(body: Body) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "the name of a model, as /v1/models lists them")
    return model


def _options(body: Body, max_tokens: int | None) -> Options:
    stream = _boolean(body, "stream")
    return Options(
        temperature=_number(body, "temperature", low=0.0, high=2.0),
        top_p=_number(body, "top_p", low=0.0, high=1.0),
        max_tokens=max_tokens,
        seed=_integer(body, "seed", low=-MAX_SEED, high=MAX_SEED - 1),
        stop=_stops(body.get("stop")),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
    )


def _max_tokens(body: Body, name: str) -> int | None:
    return _integer(body, name, low=1, high=2**31 - 1)


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object")
    if not stream:
        raise InvalidRequestError(
            "'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value"
        )
    return _boolean(cast("dict[str, Any]", options), "include_usage", "stream_options.include_usage")


def _number(body: Body, name: str, *, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(name, f"a number from {low:g} to {high:g}")
    return float(value)


def _integer(body: Body, name: str, *, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"a whole number from {low} to {high}")
    return value


def _boolean(body: Body, name: str, param: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(param or name, "true or false")
    return bool(value)


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops):
        raise _wrong("stop", f"a string or up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(cast("list[str]", stops))


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(cast("list[Any]", value)))


def _message(item: Any, param: str) -> ChatMessage:
    if not isinstance(item, dict):
        raise _wrong(param, "an object with 'role' and 'content'")
    message = cast("dict[str, Any]", item)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{param}.role", "one of " + ", ".join(sorted(ROLES)))
    if message.get("tool_calls"):
        raise InvalidRequestError(
            "Tool calls are not supported by this server.", param=f"{param}.tool_calls", code="unsupported_parameter"
        )
    return ChatMessage("system" if role == "developer" else role, _content(message.get("content"), f"{param}.content"))


def _content(value: Any, param: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong(param, "a string or a list of text parts")
    return "".join(_part(part, f"{param}[{index}]") for index, part in enumerate(cast("list[Any]", value)))


def _part(value: Any, param: str) -> str:
    part = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise _wrong(param, "a part of type 'text' with its 'text'; this server takes text only")
    return text


def _prompt(value: Any) -> str | tuple[int, ...]:
    """A string, a list of token ids, or a list of one of these."""
    if not isinstance(value, (str, list)):
        raise _wrong("prompt", "a string or a list of token ids")
    prompts = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(prompts) == 1 and isinstance(prompts[0], (str, list)):
        return prompts[0] if isinstance(prompts[0], str) else _token_ids(cast("list[Any]", prompts[0]))
    if len(prompts) > 1 and not isinstance(prompts[0], int):
        raise InvalidRequestError(
            "One prompt per request: 'prompt' holds several.", param="prompt", code="unsupported_value"
        )
    return _token_ids(prompts)


def _token_ids(values: list[Any]) -> tuple[int, ...]:
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise _wrong("prompt", "a string or a list of token ids")
    return tuple(cast("list[int]", values))


def _wrong(param: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' must be {expected}.", param=param, code="invalid_value")
