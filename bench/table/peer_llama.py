"""llama.cpp measured by its own tools: llama-bench, llama-batched-bench, and both with its RPC servers.

That flatters it: the tools neither serve HTTP nor make text of tokens, and its links are not encrypted.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.table.ours import LOOPBACK, Place, on_cores
from bench.table.streams import NotMeasuredError
from build_scripts.frozen_program import free_ports

RUN_S: Final = 600.0
START_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """`servers`: addresses of RPC servers, which hold the last `offloaded` layers (the output head counts as one), in
    shares of `split` where it is given; () for one process alone."""

    programs: Path
    model: Path
    threads: int
    cores: tuple[int, ...] = ()
    servers: tuple[str, ...] = ()
    offloaded: int = 0
    split: str = ""

    def prefill(self, tokens: int) -> float:
        return bench_rate(self._bench("-p", tokens, "-n", 0), prompt=tokens)

    def decode(self, prompt_tokens: int, tokens: int, streams: int = 1) -> float:
        """Tokens a second, of all streams together; behind `prompt_tokens` of context."""
        if streams == 1:
            return bench_rate(self._bench("-p", 0, "-n", tokens, "-d", prompt_tokens), generated=tokens)
        told = self._run(
            "llama-batched-bench", "-npp", prompt_tokens, "-ntg", tokens, "-npl", streams,
            "-c", streams * (prompt_tokens + tokens) * 2, "--output-format", "jsonl",
        )  # fmt: skip
        return batched_rate(told, streams, tokens)

    def _bench(self, *what: object) -> str:
        return self._run("llama-bench", *what, "-r", 1, "-o", "jsonl")

    def _run(self, program: str, *what: object) -> str:
        words = [self.programs / program, "-m", self.model, "-t", self.threads, *what]
        if self.servers:
            words += ["--rpc", ",".join(self.servers), "-ngl", self.offloaded, *self._split(program)]
        with on_cores(self.cores):
            done = finished(list(map(str, words)), RUN_S)
        if done.returncode != 0:
            raise NotMeasuredError(f"{program} failed: {done.stderr[-2000:]}")
        return done.stdout

    def _split(self, program: str) -> list[str]:
        """llama-bench writes shares with slashes: commas are for several runs."""
        shares = self.split.replace(",", "/") if program == "llama-bench" else self.split
        return ["-ts", shares] if shares else []


def finished(words: Sequence[str], deadline_s: float) -> subprocess.CompletedProcess[str]:
    """Raises NotMeasuredError for one that takes longer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"{words[0]} did not end within {deadline_s:.0f} s.") from None


def bench_rate(told: str, prompt: int = 0, generated: int = 0) -> float:
    """Tokens a second out of llama-bench's JSON lines. Raises NotMeasuredError where it measured another thing."""
    lines = _lines(told)
    if len(lines) != 1 or (lines[0]["n_prompt"], lines[0]["n_gen"]) != (prompt, generated):
        raise NotMeasuredError(f"llama-bench told: {told[-500:]}")
    return float(lines[0]["avg_ts"])


def batched_rate(told: str, streams: int, tokens: int) -> float:
    """Tokens a second of all streams out of llama-batched-bench's. Raises NotMeasuredError as well."""
    lines = _lines(told)
    if len(lines) != 1 or (lines[0]["pl"], lines[0]["tg"]) != (streams, tokens):
        raise NotMeasuredError(f"llama-batched-bench told: {told[-500:]}")
    return float(lines[0]["speed_tg"])


def _lines(told: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


@contextmanager
def rpc_servers(programs: Path, places: Sequence[Place]) -> Iterator[list[str]]:
    """A server of one thread at each of `places`; their addresses. They end with the block."""
    with ExitStack() as stack:
        addresses: list[str] = []
        for place, port in zip(places, free_ports(len(places)), strict=True):
            host = place.host.address if place.host else LOOPBACK
            with place.entered():
                stack.enter_context(_server(programs, host, port))
            _wait_listening(host, port)
            addresses.append(f"{host}:{port}")
        yield addresses


@contextmanager
def _server(programs: Path, host: str, port: int) -> Iterator[None]:
    words = [str(programs / "ggml-rpc-server"), "--host", host, "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait_listening(host: str, port: int) -> None:
    """Raises NotMeasuredError."""
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise NotMeasuredError(f"No RPC server answers at {host}:{port}.") from None
            time.sleep(0.1)
