"""Where checkpoints are found. The hub is a real HTTP server on loopback that speaks the part of its interface used."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers import hostile_checkpoints as hostile
from transport.messages import ModelRef
from vramancer_cli.errors import ModelError
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder
from vramancer_cli.runtime import store

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"never",
    "tokenizer.json": b"{}",
}


async def test_without_a_model_the_built_in_one() -> None:
    assert await store.locate_choice(None) == ("builtin", BUILTIN_NAME, builtin_folder())


async def test_a_folder_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    source, location, folder = await store.locate_choice(str(tmp_path))
    assert (source, location, folder) == ("folder", str(tmp_path.resolve()), tmp_path.resolve())
    assert await store.locate_ref(ModelRef("m", "folder", location, "")) == folder


async def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        await store.locate_choice(str(tmp_path))


async def test_a_head_needs_a_tokenizer_that_it_can_read_and_a_worker_does_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        await store.locate_choice(str(tmp_path))
    assert await store.locate_ref(ModelRef("m", "folder", str(tmp_path), "")) == tmp_path.resolve()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
async def test_a_folder_that_brings_code_is_refused_on_every_node(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    hostile.brings_code(name)(tmp_path)
    with pytest.raises(ModelError, match="auto_map"):
        await store.locate_ref(ModelRef("m", "folder", str(tmp_path), ""))


class _Hub(BaseHTTPRequestHandler):
    """The calls that a snapshot takes: the revision, what a repository holds, and each file."""

    asked: list[str]

    def do_GET(self) -> None:
        self._reply(body=True)

    def do_HEAD(self) -> None:
        self._reply(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, *, body: bool) -> None:
        type(self).asked.append(self.path)
        if self.path.startswith("/api/models/org/there/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self._send(json.dumps(entries).encode(), body)
        elif self.path.startswith("/api/models/org/there"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": "org/there", "sha": COMMIT, "siblings": siblings}).encode(), body)
        elif self.path.startswith("/org/there/resolve/"):
            self._send(FILES[self.path.rsplit("/", 1)[1]], body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    _Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import asyncio, sys
from vramancer_cli.runtime import store
from vramancer_cli.errors import ModelError
try:
    source, location, folder = asyncio.run(store.locate_choice(sys.argv[1]))
    print(source, location, *sorted(path.name for path in folder.iterdir()))
except ModelError as error:
    print("refused:", error)
"""


def locate(model: str, hub: str, cache: Path) -> str:
    """In a process of its own: the hub's client reads its environment once."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    run = [sys.executable, "-c", SCRIPT, model]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_a_hub_model_is_fetched_without_its_pickles(hub: str, tmp_path: Path) -> None:
    assert locate("org/there", hub, tmp_path) == "hub org/there config.json model.safetensors tokenizer.json"
    assert not any("pytorch_model.bin" in path for path in _Hub.asked)


def test_a_model_that_the_hub_does_not_have_is_refused_in_a_sentence(hub: str, tmp_path: Path) -> None:
    assert locate("org/missing", hub, tmp_path) == "refused: The hub has no model 'org/missing'."


def test_no_hub_at_all_is_a_sentence_too(tmp_path: Path) -> None:
    answer = locate("org/there", "http://127.0.0.1:9", tmp_path)
    assert answer.startswith("refused: 'org/there' could not be fetched")
