"""OpenAI's request JSON as checked values. Pure: bytes in, values or InvalidRequestError out.

Which fields count: those below are honoured; those in the two `UNSUPPORTED` tables are known but not built, and
refused by name unless they hold their default; every other key is ignored, because clients send keys of their own.
Shapes after the public OpenAI API reference (chat completions, completions).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, cast

from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.serving.fields import (
    Body,
    boolean,
    integer,
    json_object,
    model_name,
    refuse_unsupported,
    refused,
    token_ids,
    wrong,
)
from vramancer_cli.serving.sampling_params import (
    SamplingParams,
    chat_logprobs,
    parse_sampling,
    stop_token_ids,
    text_logprobs,
)

ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 512
MAX_CHOICES: Final = 16
DEFAULT_COMPLETION_TOKENS: Final = 16
MOST_PRIORITY: Final = 1000
PROMPT_KINDS: Final = "a string or a list of token ids"

CHAT_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
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
TEXT_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}


@dataclass(frozen=True, slots=True)
class Options:
    """What both endpoints share. `max_tokens` is None where the request names none, and 0 only with `echo`.

    `best_of` answers are made, and the `n` with the highest mean log-probability are given. The lower `priority`, the
    earlier.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    n: int = 1
    best_of: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    priority: int = 0


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
    body = json_object(raw)
    refuse_unsupported(body, CHAT_UNSUPPORTED)
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options = _options(body, chat_logprobs(body), _max_tokens(body, limit))
    return ChatQuery(model_name(body), _messages(body.get("messages")), options)


def parse_text(raw: bytes) -> TextQuery:
    """Raises InvalidRequestError naming the parameter at fault."""
    body = json_object(raw)
    refuse_unsupported(body, TEXT_UNSUPPORTED)
    echo = boolean(body, "echo")
    max_tokens = _max_tokens(body, "max_tokens", low=0 if echo else 1)
    max_tokens = DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens
    options = _options(body, text_logprobs(body), max_tokens, echo=echo)
    return TextQuery(model_name(body), _prompt(body.get("prompt")), options)


def _options(body: Body, top_logprobs: int | None, max_tokens: int | None, *, echo: bool = False) -> Options:
    stream = boolean(body, "stream")
    n = integer(body, "n", low=1, high=MAX_CHOICES) or 1
    options = Options(
        sampling=parse_sampling(body, top_logprobs),
        max_tokens=max_tokens,
        n=n,
        best_of=integer(body, "best_of", low=1, high=MAX_CHOICES) or n,
        stop=_stops(body.get("stop")),
        stop_token_ids=stop_token_ids(body),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        echo=echo,
        priority=integer(body, "priority", low=-MOST_PRIORITY, high=MOST_PRIORITY) or 0,
    )
    _refuse_contradictions(options)
    return options


def _refuse_contradictions(options: Options) -> None:
    if options.best_of < options.n:
        raise refused("best_of", f"'best_of' is {options.best_of}, less than 'n', which is {options.n}.")
    if options.stream and options.best_of > options.n:
        raise refused(
            "best_of", "A stream cannot wait for the best answers: 'best_of' must be 'n' with 'stream': true."
        )
    if options.max_tokens == 0 and options.best_of > 1:
        raise refused("n", "With 'max_tokens' 0 there is one choice: the prompt.")
    if options.max_tokens is not None and options.sampling.min_tokens > options.max_tokens:
        least, most = options.sampling.min_tokens, options.max_tokens
        raise refused("min_tokens", f"'min_tokens' is {least}, more than 'max_tokens', which is {most}.")


def _max_tokens(body: Body, name: str, low: int = 1) -> int | None:
    return integer(body, name, low=low, high=2**31 - 1)


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", "an object")
    if not stream:
        raise refused("stream_options", "'stream_options' needs 'stream': true.")
    return boolean(cast("dict[str, Any]", options), "include_usage", "stream_options.include_usage")


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops):
        raise wrong("stop", f"a string or up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(cast("list[str]", stops))


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        raise wrong("messages", "a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(cast("list[Any]", value)))


def _message(item: Any, param: str) -> ChatMessage:
    if not isinstance(item, dict):
        raise wrong(param, "an object with 'role' and 'content'")
    message = cast("dict[str, Any]", item)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{param}.role", "one of " + ", ".join(sorted(ROLES)))
    if message.get("tool_calls"):
        raise InvalidRequestError(
            "Tool calls are not supported by this server.", param=f"{param}.tool_calls", code="unsupported_parameter"
        )
    return ChatMessage("system" if role == "developer" else role, _content(message.get("content"), f"{param}.content"))


def _content(value: Any, param: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong(param, "a string or a list of text parts")
    return "".join(_part(part, f"{param}[{index}]") for index, part in enumerate(cast("list[Any]", value)))


def _part(value: Any, param: str) -> str:
    part = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise wrong(param, "a part of type 'text' with its 'text'; this server takes text only")
    return text


def _prompt(value: Any) -> str | tuple[int, ...]:
    """A string, a list of token ids, or a list of one of these."""
    if not isinstance(value, (str, list)):
        raise wrong("prompt", PROMPT_KINDS)
    prompts = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(prompts) == 1 and isinstance(prompts[0], (str, list)):
        return prompts[0] if isinstance(prompts[0], str) else token_ids(prompts[0], "prompt", PROMPT_KINDS)
    if len(prompts) > 1 and not isinstance(prompts[0], int):
        raise InvalidRequestError(
            "One prompt per request: 'prompt' holds several.", param="prompt", code="unsupported_value"
        )
    return token_ids(prompts, "prompt", PROMPT_KINDS)
