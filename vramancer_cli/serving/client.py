"""The API as the small verbs call it. Standard library only, so that `status` and `chat` start at once.

Never imports aiohttp, msgspec or transformers.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import (
    DaemonUnreachableError,
    InvalidRequestError,
    NodeLostError,
    NotReadyError,
    QueueFullError,
    UsageError,
    VramancerError,
)

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
STREAM_SILENCE_S: Final = 60.0
"""The server breaks every silence of a stream after 15 s, so a longer one means that it is gone."""
TOKEN_HINT: Final = "Put the server's token into VRM_API_TOKEN."  # noqa: S105


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer: text; or why it ended; or, last, how many tokens the server counted."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ApiClient:
    """One VRAMancer at `url`. Every call opens its own connection and closes it.

    Each call raises DaemonUnreachableError when nothing (or something else) answers there, NotReadyError,
    QueueFullError, NodeLostError, InvalidRequestError, UsageError (token), else VramancerError with the server's words.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0) -> None:
        parts = _parts(url)
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"'{url}' is not an address.", hint="It looks like http://127.0.0.1:5000.")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, _port(url, parts.netloc)
        self._token = token
        self._timeout_s = timeout_s

    def status(self, fresh: bool = False) -> ClusterStatus:
        """The cluster as its head sees it; `fresh` makes the head ask every node first."""
        reply = self._json("GET", "/api/pipeline/status" + ("?fresh=true" if fresh else ""))
        try:
            return ClusterStatus.from_json(reply)
        except (KeyError, TypeError, ValueError) as error:
            raise VramancerError(
                f"The VRAMancer at {self.url} speaks of its cluster in words that this version does not know.",
                hint="Update the older one of the two.",
            ) from error

    def invite(self) -> tuple[str, float]:
        """(a new pairing code, for how many seconds it is valid)."""
        reply = self._json("POST", "/api/invites", {})
        return str(reply["code"]), float(reply["valid_s"])

    def models(self) -> list[str]:
        """The names of the models served."""
        return [str(card["id"]) for card in self._json("GET", "/v1/models")["data"]]

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[ChatDelta]:
        """The answer as it comes. Closing the iterator (or Ctrl-C in it) hangs up, and the server stops answering.

        Without `model`, the first one served. Raises VramancerError for an answer that was cut.
        """
        asked = {"temperature": temperature, "max_tokens": max_tokens}
        body = {
            "model": model or self._first_model(),
            "messages": [dict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in asked.items() if value is not None},
        }
        with self._reply("POST", "/v1/chat/completions", body, max(self._timeout_s, STREAM_SILENCE_S)) as response:
            yield from _deltas(response)

    def _first_model(self) -> str:
        names = self.models()
        if not names:
            raise NotReadyError(self.status().reason)
        return names[0]

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._reply(method, path, body, self._timeout_s) as response:
            return self._object(response.read(MAX_REPLY_BYTES))

    @contextmanager
    def _reply(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> Generator[http.client.HTTPResponse, None, None]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers())
            response = connection.getresponse()
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                raise self._refusal(response)
            yield response
        except TimeoutError as error:
            raise DaemonUnreachableError(f"The VRAMancer at {self.url} does not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachableError(f"No VRAMancer answers at {self.url}.") from error
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        return headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DaemonUnreachableError(f"Something at {self.url} answers, but it is not VRAMancer.")
        return cast("dict[str, Any]", value)

    def _refusal(self, response: http.client.HTTPResponse) -> VramancerError:
        error = self._object(response.read(MAX_REPLY_BYTES)).get("error")
        if not isinstance(error, dict):
            return DaemonUnreachableError(f"Something at {self.url} answers, but it is not VRAMancer.")
        return error_of(cast("dict[str, Any]", error))


def error_of(error: Mapping[str, Any]) -> VramancerError:
    """OpenAI's error object as the exception that the server had."""
    message, code, param = str(error.get("message") or ""), error.get("code"), error.get("param")
    match code:
        case "not_ready":
            return NotReadyError(message)
        case "queue_full":
            return QueueFullError(message)
        case "node_lost":
            return NodeLostError(message)
        case "invalid_api_key":
            return UsageError(message, hint=TOKEN_HINT)
        case "not_the_head":
            return UsageError(message)
        case _ if error.get("type") == "invalid_request_error":
            return InvalidRequestError(message, param=param, code=code)
        case _:
            return VramancerError(message)


def _parts(url: str) -> SplitResult | None:
    """None where an IPv6 address is not whole."""
    try:
        return urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return None


def _port(url: str, netloc: str) -> int | None:
    try:
        return urlsplit("//" + netloc).port
    except ValueError as error:
        raise UsageError(f"'{url}' has no valid port.", hint="It looks like http://127.0.0.1:5000.") from error


def _deltas(response: http.client.HTTPResponse) -> Iterator[ChatDelta]:
    """Raises VramancerError for an error event, and for an end without [DONE]: that answer is not whole."""
    for data in _events(response):
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if chunk.get("error"):
            raise error_of(chunk["error"])
        delta = _delta(chunk)
        if delta != ChatDelta():
            yield delta
    raise VramancerError("The answer was cut before its end.", hint="See 'vramancer status', then ask again.")


def _events(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of each whole event; this server writes one line per event. A line cut short is none."""
    while line := _line(response):
        if line.startswith(b"data: ") and line.endswith(b"\n"):
            yield line[len(b"data: ") :].decode().rstrip("\r\n")


def _line(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.readline(MAX_LINE_BYTES)
    except (http.client.HTTPException, ConnectionError):
        return b""  # hung up in the middle: the missing [DONE] tells


def _delta(chunk: dict[str, Any]) -> ChatDelta:
    choices = cast("list[dict[str, Any]]", chunk.get("choices"))
    choice = choices[0] if choices else {}
    delta = cast("dict[str, str]", choice.get("delta", {}))
    usage = cast("dict[str, int]", chunk.get("usage") or {})
    return ChatDelta(
        text=delta.get("content") or "",
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )
