"""A worker that has no copy of the model: real processes, a head with a model from the hub's cache, a slow network.

Slow (about half a minute) because three nodes start, one of them three times; it is the whole road in one story.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_scripts.local_cluster import NodeProcess
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.slow_relay import slow_relay
from vramancer_cli.runtime import kept_weights
from vramancer_cli.runtime.piece_records import PieceKey, PieceRecords
from vramancer_cli.serving.client import ApiClient

COMMIT = "c" * 40
PROMPT = "several machines hold"
MIB = 1 << 20


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """As huggingface_hub leaves it after a download; 8 layers, 30 MiB in 5 files."""
    repository = tmp_path / "hf" / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shape = {"hidden_size": 256, "intermediate_size": 1024, "initializer_range": 0.05}
    make_checkpoint(snapshot, tokenizer=True, shard_size="7MB", **shape)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hf"


def by_transformers(snapshot: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(snapshot)
    model = AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def answer(url: str) -> str:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    ask = {"model": "org/tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
    return client.completions.create(**ask).choices[0].text


def wait_for(condition, what: str, deadline_s: float = 60.0):
    until = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < until, what
        time.sleep(0.05)
    return found


def transfers(worker: NodeProcess) -> list[tuple[float, float]]:
    """MiB that moved and that were kept, of each transfer that was finished."""
    found = re.findall(r'weights are here.* moved="([\d.]+) MiB" kept="([\d.]+) MiB"', worker.output)
    return [(float(moved), float(kept)) for moved, kept in found]


class Scene:
    def __init__(self, folder: Path, hub_cache: Path) -> None:
        self.folder = folder
        self.shelf = kept_weights.shelf_in(folder / "worker-cache")
        ports = ["--port", "0", "--node-port", "0", "--memory", "24MiB"]
        offline = {"HF_HUB_OFFLINE": "1", "HOME": str(folder / "nobody")}
        head = ["start", "--master", "--model", "org/tiny", "--dtype", "float32", "--prefer", "room", "--name", "head"]
        self.arguments = [*ports, "--name", "worker", "--cache-dir", str(folder / "worker-cache")]
        self.without = {**offline, "HF_HOME": str(folder / "empty")}
        self.head = NodeProcess.launch(
            folder / "head",
            [*head, *ports, "--cache-dir", str(folder / "head-cache")],
            more={**offline, "HF_HOME": str(hub_cache)},
        )
        self.worker: NodeProcess | None = None

    @property
    def client(self) -> ApiClient:
        return ApiClient(self.head.api_url)

    def join(self, port: int) -> None:
        code, _ = self.client.invite()
        arguments = ["join", f"127.0.0.1:{port}", "--code", code, *self.arguments]
        self.worker = NodeProcess.launch(self.folder / "worker", arguments, more=self.without)

    def start_again(self) -> NodeProcess:
        self.worker = NodeProcess.launch(self.folder / "worker", ["start", *self.arguments], more=self.without)
        return self.worker

    def fetching(self) -> tuple[int, int] | None:
        """Bytes there and due, while the worker fetches, as the head's status says it."""
        found = [(n.fetched_bytes, n.fetch_bytes) for n in self.client.status().nodes if n.role == "worker"]
        return next(((there, due) for there, due in found if 0 < there < due), None)

    def wait_ready(self) -> None:
        def ready() -> bool:
            status = self.client.status()
            return status.state == "ready" and sum(node.layers is not None for node in status.nodes) == 2

        wait_for(ready, f"not ready: {self.client.status()}")

    def stop(self) -> None:
        for node in (self.worker, self.head):
            if node is not None:
                node.stop()


def test_a_worker_without_the_model_gets_its_layers_from_the_head(tmp_path: Path, hub_cache: Path) -> None:
    expected = by_transformers(hub_cache / "hub" / "models--org--tiny" / "snapshots" / COMMIT)
    scene = Scene(tmp_path, hub_cache)
    try:
        scene.head.wait_live()
        with slow_relay(scene.head.node_port, 3 * MIB) as relay:
            scene.join(relay.port)
            there, due = wait_for(lambda: (f := scene.fetching()) and f[0] > 4 * MIB and f, "nothing was fetched")
            assert there < due < 24 * MIB, "more than its layers"
            scene.worker.kill()
            relay.bytes_per_s = None
            worker = scene.start_again()
            scene.wait_ready()
            moved, kept = transfers(worker)[0]
            assert kept >= 2 and moved >= 2
            assert moved + kept == pytest.approx(due / MIB, abs=0.2)
            assert answer(scene.head.api_url) == expected
            worker.stop()

            flipped, before = flip_a_bit(scene.shelf), len(transfers(worker))
            worker = scene.start_again()
            scene.wait_ready()
            assert transfers(worker)[before][0] == pytest.approx(flipped / MIB, abs=0.06)
            assert answer(scene.head.api_url) == expected
    finally:
        scene.stop()


def flip_a_bit(shelf: Path) -> int:
    """In the largest piece; gives its size."""
    [model] = kept_weights.kept(shelf)
    folder = kept_weights.copy_folder(shelf, model.digest)
    records = PieceRecords(folder / "pieces", bytes.fromhex(model.digest))
    key: PieceKey = max(records._known, key=lambda key: key.size_bytes)
    with (folder / f"{key.file:05}.safetensors").open("r+b") as file:
        file.seek(key.start + 1000)
        [byte] = file.read(1)
        file.seek(key.start + 1000)
        file.write(bytes([byte ^ 4]))
    return key.size_bytes
