"""The API as the small verbs call it. Standard library only, so that `status` and `chat` start at once.

Never imports aiohttp, msgspec or transformers.
"""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import SplitResult, quote, urlsplit

from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import (
    DaemonUnreachableError,
    InvalidRequestError,
    NodeLostError,
    NotReadyError,
    QueueFullError,
    UntrustedServerError,
    UsageError,
    VramancerError,
)
from vramancer_cli.serving import keys, signing
from vramancer_cli.serving.auth import is_loopback
from vramancer_cli.serving.keys import KeyRecord
from vramancer_cli.telemetry.cluster_trace import ClusterTrace

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
MAX_TRACE_BYTES: Final = 256 * 1024 * 1024
TRACE_S: Final = 30.0
"""Gathering takes three seconds at most, and a large cluster's trace is some 100 MB of JSON."""
MAX_LINE_BYTES: Final = 1024 * 1024
STREAM_SILENCE_S: Final = 60.0
DRAIN_S: Final = 660.0
"""The master gives up after ten minutes, and says why."""
"""The server breaks every silence of a stream after 15 s, so a longer one means that it is gone."""
TOKEN_HINT: Final = "Put a key into VRM_API_TOKEN; 'vramancer keys add NAME' makes one on the node."  # noqa: S105
REFUSED: Final = frozenset(
    {"not_the_head", "no_token", "not_removed", "not_drained", "insufficient_role", "https_required", "request_expired"}
)
"""Codes of replies whose sentence says what to do."""


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer: text; or why it ended; or, last, how many tokens the server counted."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ApiClient:
    """One VRAMancer at `url`. Every call opens its own connection and closes it.

    `token` is shown as a bearer token, but never in the clear to another machine: there it signs (docs/api-signing.md).
    `own_key` signs as well, once the server has asked for a key: with it the owner of a state folder needs no other.
    `ca_pem` is the authority that an https server may be certified by, beside the system's.

    Each call raises DaemonUnreachableError when nothing (or something else) answers there, UntrustedServerError,
    NotReadyError, QueueFullError, NodeLostError, InvalidRequestError, UsageError (key), else VramancerError with the
    server's words.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 10.0,
        *,
        own_key: KeyRecord | None = None,
        ca_pem: str | None = None,
    ) -> None:
        parts = _parts(url)
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"'{url}' is not an address.", hint="It looks like http://127.0.0.1:5000.")
        if token and keys.is_mistyped(token):
            raise UsageError("The key has a typing mistake: its last letters do not fit the others.", hint=TOKEN_HINT)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, _port(url, parts.netloc)
        in_the_clear = not self._secure and not is_loopback(parts.hostname)
        self._token = None if in_the_clear else token
        self._signer = KeyRecord.of(token, "", "user", 0.0) if token and in_the_clear else None
        self._own_key = None if token else own_key
        self._ca_pem = ca_pem
        self._timeout_s = timeout_s

    def status(self, fresh: bool = False) -> ClusterStatus:
        """The cluster as its head sees it; `fresh` makes the head ask every node first."""
        reply = self._json("GET", "/api/pipeline/status" + ("?fresh=true" if fresh else ""))
        try:
            return ClusterStatus.from_json(reply)
        except (KeyError, TypeError, ValueError) as error:
            raise self._foreign_words() from error

    def _foreign_words(self) -> VramancerError:
        return VramancerError(
            f"The VRAMancer at {self.url} speaks of its cluster in words that this version does not know.",
            hint="Update the older one of the two.",
        )

    def invite(self) -> tuple[str, float]:
        """(a new pairing code, for how many seconds it is valid)."""
        reply = self._json("POST", "/api/invites", {})
        return str(reply["code"]), float(reply["valid_s"])

    def make_token(self, *, reusable: bool, hours: float) -> dict[str, Any]:
        """`token` (a secret, told once), `id`, `valid_s`, `reusable`. Raises UsageError on a node that is no head."""
        return self._json("POST", "/api/tokens", {"reusable": reusable, "hours": hours})

    def remove_node(self, node: str) -> str:
        """The id of the node of this name or id, now removed. Raises UsageError for none or several, or no head."""
        return str(self._json("DELETE", f"/api/nodes/{quote(node, safe='')}")["id"])

    def drain_node(self, node: str) -> str:
        """The id of the node of this name or id, which holds nothing now. Raises UsageError where that cannot be."""
        with self._reply("POST", f"/api/nodes/{quote(node, safe='')}/drain", None, DRAIN_S) as response:
            return str(self._object(response.read(MAX_REPLY_BYTES))["id"])

    def trace(self, seconds: float) -> ClusterTrace:
        """What every node did in the last `seconds`. Raises UsageError on a node that is not the head."""
        reply = self._json("GET", f"/api/trace?seconds={seconds:g}", timeout_s=TRACE_S, most_bytes=MAX_TRACE_BYTES)
        try:
            return ClusterTrace.from_json(reply)
        except (KeyError, TypeError, ValueError) as error:
            raise self._foreign_words() from error

    def models(self) -> list[str]:
        """The names of the models served."""
        return [str(card["id"]) for card in self._json("GET", "/v1/models")["data"]]

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        model: str | None = None,
        **sampling: float | None,
    ) -> Iterator[ChatDelta]:
        """The answer as it comes. Closing the iterator (or Ctrl-C in it) hangs up, and the server stops answering.

        Without `model`, the first one served. `sampling`: fields of the request, as docs/sampling.md names them; None
        is left to the server. Raises VramancerError for an answer that was cut.
        """
        body = {
            "model": model or self._first_model(),
            "messages": [dict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in sampling.items() if value is not None},
        }
        with self._reply("POST", "/v1/chat/completions", body, max(self._timeout_s, STREAM_SILENCE_S)) as response:
            yield from _deltas(response)

    def _first_model(self) -> str:
        names = self.models()
        if not names:
            raise NotReadyError(self.status().reason)
        return names[0]

    def _json(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float = 0.0,
        most_bytes: int = MAX_REPLY_BYTES,
    ) -> dict[str, Any]:
        with self._reply(method, path, body, max(timeout_s, self._timeout_s)) as response:
            return self._object(response.read(most_bytes))

    @contextmanager
    def _reply(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> Generator[http.client.HTTPResponse, None, None]:
        sent = b"" if body is None else json.dumps(body).encode()
        connection = self._connection(timeout_s)
        try:
            response = self._asked(connection, method, path, sent)
            if response.status == http.HTTPStatus.UNAUTHORIZED and self._own_key is not None:
                self._signer, self._own_key = self._own_key, None
                connection.close()
                response = self._asked(connection, method, path, sent)
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                raise self._refusal(response)
            yield response
        except TimeoutError as error:
            raise DaemonUnreachableError(f"The VRAMancer at {self.url} does not answer in time.") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        from vramancer_cli.serving.cluster_ca import client_context

        context = client_context(self._ca_pem)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)

    def _asked(
        self, connection: http.client.HTTPConnection, method: str, path: str, sent: bytes
    ) -> http.client.HTTPResponse:
        connection.request(method, path, sent or None, self._headers(method, path, sent))
        return connection.getresponse()

    def _headers(self, method: str, path: str, sent: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._signer is not None:
            return headers | {"Authorization": self._signature(self._signer, method, path, sent)}
        return headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _signature(self, key: KeyRecord, method: str, path: str, sent: bytes) -> str:
        return signing.sign(
            key_id=key.id,
            secret=key.signing,
            method=method,
            target=path,
            body=sent,
            time_s=int(time.time()),
            nonce=secrets.token_urlsafe(16),
        )

    def _unreachable(self, error: Exception) -> VramancerError:
        if type(error).__name__ == "SSLCertVerificationError":  # ssl itself is imported only where it is used
            return UntrustedServerError(f"What answers at {self.url} cannot prove that it belongs to this cluster.")
        return DaemonUnreachableError(f"No VRAMancer answers at {self.url}.")

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
        case _ if code in REFUSED:
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
