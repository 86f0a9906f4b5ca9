"""HTTP as no client library writes it: heads, bodies, framings and keys, valid ones among them. Bytes only."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from fuzz.mutation import spoil
from fuzz.raw_pieces import CHUNKS, FRAMINGS, METHODS, ODD_HEADERS, ODD_JSON, ODD_PATHS, PATHS, TLS_HELLO, VERSIONS


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes for one connection. `stalls`: never says that it has ended. `pieces`: how many, `pause_s` between them."""

    kind: str
    data: bytes
    stalls: bool = False
    pieces: int = 1
    pause_s: float = 0.0


def head(
    method: str, path: str, *headers: str, version: str = "HTTP/1.1", host: str = "127.0.0.1", end: str = "\r\n"
) -> bytes:
    lines = [f"{method} {path} {version}", *([f"Host: {host}"] if host else []), *headers, "", ""]
    return end.join(lines).encode("utf-8", "surrogatepass")


def post(path: str, body: bytes, *headers: str) -> bytes:
    return (
        head(
            "POST",
            path,
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            *headers,
            "Connection: close",
        )
        + body
    )


# --- kinds ----------------------------------------------------------------------------------------------------


def garbage(rng: random.Random, model: str) -> Raw:
    data = rng.choice(
        (
            rng.randbytes(rng.randrange(1, 400)),
            b"\r\n" * 5000,
            b"\0" * 70_000,
            b"GET",
            b"VTPDATA\n",
            TLS_HELLO,
            TLS_HELLO[:20],
            spoil(TLS_HELLO, rng),
        )
    )
    return Raw("garbage", data)


def request_line(rng: random.Random, model: str) -> Raw:
    path = rng.choice((*PATHS, *ODD_PATHS, *ODD_PATHS))
    version, end = rng.choice(VERSIONS), rng.choice(("\r\n",) * 5 + ("\n", "\r"))
    return Raw("request line", head(rng.choice(METHODS), path, "Connection: close", version=version, end=end))


def odd_headers(rng: random.Random, model: str) -> Raw:
    host = rng.choice(("127.0.0.1",) * 4 + ("", "evil.example", "localhost:1"))
    headers = rng.choices(ODD_HEADERS, k=rng.choice((1, 1, 2, 4)))
    if rng.random() < 0.05:
        headers = [f"X-{i}: {i}" for i in range(rng.choice((50, 200, 5000)))]
    method, path = rng.choice(("GET", "GET", "POST", "OPTIONS", "DELETE")), rng.choice(PATHS)
    return Raw("headers", head(method, path, *headers, "Connection: close", host=host))


def framing(rng: random.Random, model: str) -> Raw:
    body = rng.choice((*CHUNKS, b"{}", b"abc", head("GET", "/live")))
    path = rng.choice(("/v1/completions", "/api/tokens", "/live"))
    return Raw("framing", head("POST", path, rng.choice(FRAMINGS), "Connection: close") + body)


def chunked(rng: random.Random, model: str) -> Raw:
    body = rng.choice(CHUNKS) if rng.random() < 0.5 else _chunks(_body(rng, model), rng)
    body = spoil(body, rng) if rng.random() < 0.4 else body
    path = rng.choice(("/v1/completions", "/v1/chat/completions", "/api/tokens", "/live"))
    return Raw("chunked", head("POST", path, "Transfer-Encoding: chunked", "Connection: close") + body)


def _chunks(body: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 7, 4096)) if len(body) < 5000 else 65536
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def odd_json(rng: random.Random, model: str) -> Raw:
    body = _body(rng, model)
    path = rng.choice(("/v1/completions", "/v1/chat/completions", "/api/tokens", "/api/invites"))
    return Raw("json", post(path, body, *rng.choices(ODD_HEADERS[-5:], k=rng.choice((0, 0, 0, 1)))))


def _body(rng: random.Random, model: str) -> bytes:
    body = rng.choice(ODD_JSON).replace(b'"M"', json.dumps(model).encode())
    return spoil(body, rng) if rng.random() < 0.3 and len(body) < 10_000 else body


def packed(rng: random.Random, model: str) -> Raw:
    """Bodies said to be compressed: broken, of another kind, and a bomb."""
    whole = rng.choice(_zipped())
    zipped = rng.choice((whole, whole[:-9], b"\x1f\x8b", rng.randbytes(50)))
    coding = rng.choice(("gzip", "deflate", "br", "zstd", "compress", "identity", "gzip, gzip", "x" * 100))
    return Raw("compressed", post("/v1/completions", zipped, f"Content-Encoding: {coding}"))


@cache
def _zipped() -> Sequence[bytes]:
    """The bomb is 50 MB of spaces in 50 kB."""
    plains = (b'{"model":"x"}', b"", b" " * 50_000_000)
    return [pack(plain) for plain in plains for pack in (gzip.compress, zlib.compress)]


def pipelined(rng: random.Random, model: str) -> Raw:
    """Requests behind one another; the last one asks to close."""
    one = post("/api/tokens", b"{").replace(b"Connection: close\r\n", b"")
    parts = [
        rng.choice((head("GET", "/live"), head("HEAD", "/"), head("GET", "/nothing"), one))
        for _ in range(rng.choice((2, 5, 60)))
    ]
    last = (
        spoil(head("GET", "/live", "Connection: close"), rng)
        if rng.random() < 0.4
        else head("GET", "/live", "Connection: close")
    )
    return Raw("pipelined", b"".join(parts) + last)


def spoiled(rng: random.Random, model: str) -> Raw:
    """A right request with some bytes changed."""
    text = json.dumps({"model": model, "prompt": "a", "max_tokens": 2, "stream": rng.random() < 0.5}).encode()
    honest = rng.choice(
        (
            post("/v1/completions", text),
            head("GET", "/api/pipeline/status?fresh=1", "Connection: close"),
            post("/api/tokens", b'{"hours": 1}'),
        )
    )
    return Raw("spoiled", spoil(honest, rng))


def in_pieces(rng: random.Random, model: str) -> Raw:
    """A right request that comes byte by byte, nearly."""
    text = json.dumps({"model": model, "prompt": "a", "max_tokens": 2}).encode()
    return Raw("in pieces", post("/v1/completions", text), pieces=rng.choice((3, 20, 60)), pause_s=0.005)


def stalled(rng: random.Random, model: str) -> Raw:
    """A head or a body that never ends: the server must."""
    half = rng.choice(
        (b"", b"G", b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n", TLS_HELLO[:50], post("/v1/completions", b"{}")[:-1])
    )
    return Raw("stalled", half, stalls=True)


KINDS: Final[Sequence[tuple[int, Callable[[random.Random, str], Raw]]]] = (
    (60, garbage),
    (200, request_line),
    (200, odd_headers),
    (120, framing),
    (120, chunked),
    (140, odd_json),
    (12, packed),
    (50, pipelined),
    (120, spoiled),
    (20, in_pieces),
    (3, stalled),
)


def make_raw(seed: int, number: int, model: str) -> Raw:
    rng = random.Random((seed << 40) + number)
    kind = rng.choices([made for _, made in KINDS], [weight for weight, _ in KINDS])[0]
    return kind(rng, model)
