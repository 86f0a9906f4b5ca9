"""What a node is told at its start, as values, and how sizes, addresses and devices are read from text.

`commands/options.py` is the one reader of flags and environment; it fills these. Never imports typer, an upper
room, or anything slow: every verb imports this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vramancer_cli.errors import UsageError

if TYPE_CHECKING:
    from transport.types import Address

API_PORT: Final = 5000
NODE_PORT: Final = 5001
LOOPBACK: Final = "127.0.0.1"

MOST_DRAFTED: Final = 16
"""Tokens that may be guessed ahead: what stages keep at hand to take back."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["auto", "none", "int8", "int4", "int4-64", "int4-128"]
KvCache = Literal["plain", "int8"]
Activations = Literal["auto", "plain", "int8", "int4"]
Role = Literal["head", "worker"]

_UNIT_BYTES: Final = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "kb": 10**3,
    "m": 2**20, "mib": 2**20, "mb": 10**6,
    "g": 2**30, "gib": 2**30, "gb": 10**9,
    "t": 2**40, "tib": 2**40, "tb": 10**12,
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", re.ASCII)
_DEVICE: Final = re.compile(r"auto|mps|(?:cpu|cuda|rocm|xpu)(?::\d{1,3})?", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """All that `node.run` needs to know.

    `model` None is the built-in one. `port` is the API's, `node_port` the other nodes'; 0 takes a free one, and
    `*_given` says whether a person chose it (then a busy port is an error). `memory_bytes`: of each of the devices, or
    one for all alike; empty: what they have free. `context_tokens` None: chosen from the model. `head`: HOST[:PORT] as
    typed after `join`, or None. `draft`: how many tokens of an answer are guessed ahead; 0 none, None as many as pay.
    Then four are the API's (see serving.settings): `cors_origin` origins apart by commas, `rate_limit` a minute.
    """

    role: Role
    model: str | None
    host: str
    port: int
    port_given: bool
    node_port: int
    node_port_given: bool
    name: str
    devices: tuple[str, ...]
    memory_bytes: tuple[int, ...]
    dtype: Dtype
    context_tokens: int | None
    state_folder: Path
    api_token: str | None
    log_json: bool
    head: str | None
    cors_origin: str | None = None
    allow_lan_http: bool = False
    production: bool = False
    rate_limit: int | None = None
    cache_folder: Path | None = None
    quantize: Quantize = "auto"
    kv_cache: KvCache = "plain"
    activations: Activations = "auto"
    prefix_cache: bool = True
    draft: int | None = None

    def __repr__(self) -> str:
        """Without the token: settings are logged."""
        return f"NodeSettings(role={self.role!r}, name={self.name!r}, state_folder={str(self.state_folder)!r})"


def parse_size(text: str) -> int:
    """Bytes from "6GiB", "512 MiB", "8GB", "1.5g" or "1048576"; a single letter is the binary unit.

    Raises UsageError.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    unit_bytes = _UNIT_BYTES.get(found[2]) if found else None
    if found is None or unit_bytes is None:
        raise UsageError(f"'{text}' is not a size.", hint="Write it as 6GiB, 512MiB or a number of bytes.")
    size_bytes = int(float(found[1]) * unit_bytes) if "." in found[1] else int(found[1]) * unit_bytes
    if size_bytes <= 0:
        raise UsageError("A size must be more than nothing.", hint="Write it as 6GiB, 512MiB or a number of bytes.")
    return size_bytes


def parse_address(text: str, default_port: int = NODE_PORT) -> Address:
    """An address from "host", "host:port", "[v6]", "[v6]:port" or a bare IPv6 literal. Raises UsageError."""
    from transport.types import Address  # here, because most verbs never need it

    host, port_text = _split_address(text.strip())
    if not (_IPV6 if ":" in host else _HOST).fullmatch(host):
        raise UsageError(f"'{text}' is not an address.", hint="Write HOST, HOST:PORT or [IPv6]:PORT.")
    if port_text is None:
        return Address(host, default_port)
    return Address(host, _whole_number(port_text, 1, 65535, f"It is the port of '{text}'."))


def _split_address(text: str) -> tuple[str, str | None]:
    """Host and port text; the host is "" where brackets do not match. A bare IPv6 literal has no port."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            return "", None
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def parse_device(text: str) -> str:
    """A device name in lower case: auto, cpu[:N], mps, cuda[:N], rocm[:N] or xpu[:N]. Raises UsageError."""
    device = text.strip().lower()
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"'{text}' is not a device.", hint="Use auto, cpu, mps, cuda:0 or xpu:0.")
    return device


def parse_port(text: str | int) -> int:
    """A port to listen on; 0 stands for any free one. Raises UsageError."""
    return _whole_number(text, 0, 65535, "Port 0 takes any free one.")


def parse_context(text: str | int) -> int:
    """A context length in tokens. Raises UsageError."""
    return _whole_number(text, 16, 2**24, "A context is counted in tokens.")


def parse_draft(text: str | int) -> int | None:
    """How many tokens to guess ahead; None for "auto", 0 for "off". Raises UsageError."""
    words: dict[str, int | None] = {"auto": None, "off": 0}
    word = str(text).strip().lower()
    return words[word] if word in words else _whole_number(word, 0, MOST_DRAFTED, "Or write auto, or off.")


def parse_rate(text: str | int) -> int:
    """Requests a minute; 0 stands for no limit. Raises UsageError."""
    return _whole_number(text, 0, 10**6, "It counts requests a minute; 0: no limit.")


def _whole_number(text: str | int, least: int, most: int, hint: str) -> int:
    digits = str(text).strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and least <= int(digits) <= most):
        raise UsageError(f"'{text}' is not a number from {least} to {most}.", hint=hint)
    return int(digits)


def parse_node_name(text: str) -> str:
    """A name for people to read, 1 to 40 printable characters. Raises UsageError."""
    name = text.strip()
    if not name or len(name) > 40 or not name.isprintable():
        raise UsageError("A node's name has 1 to 40 printable characters.", hint="For example: --name attic-pc")
    return name
