"""A real API server over a deployment that says what the test wrote down, with real tokenizers made on the spot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.helpers.traces import two_stages
from transport.tokens import Token
from vramancer_cli.cluster.status import ClusterStatus, NodeStatus
from vramancer_cli.errors import DoesNotFitError, UsageError
from vramancer_cli.models.readout import TokenScore
from vramancer_cli.runtime.contracts import (
    Deployment,
    EmbeddingRequest,
    Generated,
    GenerationRequest,
    Invitation,
    JoinToken,
)
from vramancer_cli.serving.app import ApiServer, create_app
from vramancer_cli.serving.https import ApiCertificate
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.serving.text import TextTools
from vramancer_cli.telemetry.cluster_trace import ClusterTrace

CORPUS = ["Machines share one model and answer together.", "layer by layer, the words come back — one at a time"] * 4
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKEN = str(Token(bytes(range(32)), bytes(16)))
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_level_folder(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """A byte-level BPE tokenizer, as GPT-2 and Llama 3 have it: any text in, the same text out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _saved(tokenizer, folder, template)


def leading_space_folder(folder: Path) -> Path:
    """Words carry their leading space and unknown characters fall back to bytes, as Llama 2 and Gemma have it."""
    words = ["▁Machines", "▁share", "▁one", "▁model", "▁", "s", "a", "é"]
    vocab = [(token, -20.0) for token in (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)))]
    tokenizer = Tokenizer(models.Unigram([*vocab, *((word, -2.0) for word in words)], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return _saved(tokenizer, folder, TEMPLATE)


def _saved(tokenizer: Tokenizer, folder: Path, template: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    return folder


@dataclass
class ScriptedDeployment:
    """Says `text`, a token at a time with `pause_s` between, then raises `error` if there is one.

    Counts what it was asked and what was taken away from it before its end.
    """

    folder: Path
    text: str = "Machines share one model."
    name: str = "scripted"
    context_tokens: int = 256
    created_s: int = 1_700_000_000
    pause_s: float = 0.0
    first_pause_s: float = 0.0
    error: Exception | None = None
    error_first: bool = False
    endless: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    embedded: list[EmbeddingRequest] = field(default_factory=list)
    dropped: list[tuple[str, int]] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.tokens = TextTools.load(self.folder).encode(self.text)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
        self.requests.append(request)
        self.started.set()
        if self.error and self.error_first:
            raise self.error
        finished = False
        try:
            await asyncio.sleep(self.first_pause_s)
            async for generated in self._said(request):
                finished = generated.finish_reason is not None and generated.choice == request.choices - 1
                yield generated
            if self.error:
                finished = True
                raise self.error
        finally:
            if not finished:
                self.aborted.set()

    def drop(self, request_id: str, choice: int) -> None:
        self.dropped.append((request_id, choice))

    async def embed(self, request: EmbeddingRequest) -> tuple[float, ...]:
        """As long as the prompt in its first place, and 3 in the second; the last token's own number for "last"."""
        self.embedded.append(request)
        self.started.set()
        await asyncio.sleep(self.pause_s)
        if self.error:
            raise self.error
        return (float(len(request.prompt)) if request.pooling == "mean" else float(request.prompt[-1]), 3.0)

    async def _said(self, request: GenerationRequest) -> AsyncIterator[Generated]:
        """Every choice says the same, token by token in turn; a token's log-probability is -(1 + choice) / 4."""
        if request.prompt_logprobs is not None:
            half = len(request.prompt) // 2
            for part in (request.prompt[1:half], request.prompt[max(1, half) :]):
                last = "length" if request.max_tokens == 0 and part[-1:] == request.prompt[-1:] else None
                yield Generated((), last, prompt_scores=tuple(score(token, -2.0, request) for token in part))
            if request.max_tokens == 0:
                return
        said = 0
        while True:
            for token in self.tokens:
                await asyncio.sleep(self.pause_s)
                said += 1
                full = said >= request.max_tokens
                for choice in range(request.choices):
                    scores = (score(token, -(1 + choice) / 4, request),) if scored(request) else ()
                    yield Generated((token,), "length" if full and not self.error else None, choice, scores)
                if full:
                    return
            if not self.endless:
                break
        if not self.error:
            for choice in range(request.choices):
                yield Generated((), "stop", choice)


def scored(request: GenerationRequest) -> bool:
    return request.sampling.top_logprobs is not None


def score(token: int, logprob: float, request: GenerationRequest) -> TokenScore:
    """With the tokens from 10 on as the likeliest."""
    top = request.sampling.top_logprobs or 0
    return TokenScore(token, logprob, tuple((10 + place, -0.5 - place) for place in range(top)))


@dataclass
class ListedRegistry:
    deployments: Sequence[Deployment]

    def models(self) -> Sequence[Deployment]:
        return self.deployments

    def find(self, name: str) -> Deployment | None:
        return next((d for d in self.deployments if d.name == name), None)


def cluster_status() -> ClusterStatus:
    """Three nodes that hold eight layers."""
    return ClusterStatus(
        cluster="attic",
        cluster_id="c" * 64,
        version="0.1.0",
        state="ready",
        reason="",
        model="scripted",
        layer_count=8,
        dtype="float32",
        context_tokens=256,
        epoch=1,
        uptime_s=3720.0,
        running=0,
        waiting=0,
        tokens_per_s=0.0,
        api_url="http://127.0.0.1:5000",
        nodes=(
            _node("workshop", "head", (0, 3), None),
            _node("old-laptop", "worker", (3, 5), 0.0004),
            _node("living-room-mac", "worker", (5, 8), 0.0021),
        ),
    )


def _node(name: str, role: str, layers: tuple[int, int], round_trip_s: float | None) -> NodeStatus:
    return NodeStatus(
        id=name.encode().hex()[:32],
        name=name,
        role="head" if role == "head" else "worker",
        os="Linux",
        device="cpu",
        device_name="CPU, 2 cores",
        memory_used_bytes=6_100_000,
        memory_limit_bytes=9_000_000,
        state="ready",
        round_trip_s=round_trip_s,
        layers=layers,
        layer_tokens=0,
        loaded_fraction=1.0,
        direct=True,
        why="as much as its memory allows",
        address="127.0.0.1:5001",
    )


@dataclass
class FixedAdmin:
    """Tells one status; each fresh figure has more work done on every node, as after an answer."""

    current: ClusterStatus = field(default_factory=cluster_status)
    head: bool = True
    fresh_asked: int = 0
    traced: ClusterTrace = field(default_factory=two_stages)
    removed: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)

    async def status(self, *, fresh: bool = False) -> ClusterStatus:
        if fresh:
            self.fresh_asked += 1
            nodes = tuple(replace(node, layer_tokens=node.layer_tokens + 10) for node in self.current.nodes)
            self.current = replace(self.current, nodes=nodes)
        return self.current

    async def invite(self) -> Invitation:
        if not self.head:
            raise UsageError("Only the head of the cluster can invite.")
        return Invitation("4-otter-maple-drum", 600.0)

    async def make_token(self, *, reusable: bool, hours: float) -> JoinToken:
        if not self.head:
            raise UsageError("Only the head of the cluster can invite.")
        return JoinToken(TOKEN, "1a2b3c4d", hours * 3600, reusable)

    async def remove(self, node: str) -> str:
        found = next((known for known in self.current.nodes if node in (known.name, known.id)), None)
        if not self.head or found is None:
            raise UsageError(f"No node is called '{node}'.")
        self.removed.append(found.id)
        return found.id

    async def trace(self, seconds: float) -> ClusterTrace:
        if not self.head:
            raise UsageError("Only the head of the cluster can gather a trace.")
        return self.traced if self.traced.seconds == seconds else replace(self.traced, seconds=seconds)

    async def drain(self, node: str) -> str:
        found = next((known for known in self.current.nodes if node in (known.name, known.id)), None)
        if not self.head or found is None:
            raise UsageError(f"No node is called '{node}'.")
        if found.role == "head":
            raise DoesNotFitError("2.0 GiB more would do on 'attic'.")
        self.drained.append(found.id)
        return found.id


@asynccontextmanager
async def serving(
    *deployments: Deployment,
    admin: FixedAdmin | None = None,
    settings: ServerSettings | None = None,
    host: str = "127.0.0.1",
    certificate: ApiCertificate | None = None,
) -> AsyncIterator[ApiServer]:
    """The server on a free port, closed at the end; with a certificate it takes HTTPS too."""
    app = create_app(ListedRegistry(deployments), admin or FixedAdmin(), settings or ServerSettings(close_s=0.2))
    server = await ApiServer.start(app, host, 0, certificate)
    try:
        yield server
    finally:
        await server.close()
