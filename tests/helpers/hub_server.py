"""A server on loopback that speaks the part of the hub's interface that fetching a model takes.

Model info with sizes and hashes, files through a redirect to another path (as large ones are), ETags, ranges, gated
and private and missing repositories; and the faults that a network has, on demand.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
LARGE = (".safetensors", ".bin")


@dataclass
class Repository:
    """`access`: "open", "gated" (a token without the rights is refused), "private" (looks missing without one)."""

    files: dict[str, bytes]
    access: str = "open"
    token: str = "hf_right"
    revisions: tuple[str, ...] = ("main",)


@dataclass
class Hub:
    """`cut_after`: each answer with a large file ends after so many bytes. `spoil`: what is sent instead of a file.

    `sent`: (path of the file, first byte, bytes) of every body of a large file.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    cut_after: int | None = None
    spoil: dict[str, bytes] = field(default_factory=dict)
    url: str = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
        elif parts[0] == "bucket":
            self._large("/".join(parts[1:3]), "/".join(parts[3:]), body=body)
        elif parts[2:3] == ["resolve"]:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
        else:
            self._refuse(404, "EntryNotFound")

    def _found(self, name: str, revision: str, *, files: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        right = repository is not None and self.headers.get("Authorization") == f"Bearer {repository.token}"
        if repository is None or (repository.access == "private" and not right):
            self._refuse(401 if repository is None else 404, "RepoNotFound")
        elif repository.access == "gated" and files and not right:
            self._refuse(403, "GatedRepo")
        elif revision not in (*repository.revisions, COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _info(self, name: str, revision: str) -> None:
        repository = self._found(name, revision, files=False)
        if repository is not None:
            siblings = [_sibling(file, data) for file, data in repository.files.items()]
            self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), {}, body=True)

    def _resolve(self, name: str, revision: str, file: str, *, body: bool) -> None:
        repository = self._found(name, revision, files=True)
        if repository is None:
            return
        data = repository.files.get(file)
        if data is None:
            self._refuse(404, "EntryNotFound")
        elif file.endswith(LARGE):
            size, etag = str(len(data)), f'"{hashlib.sha256(data).hexdigest()}"'
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as a content network is
            headers = {"Location": f"{elsewhere}/bucket/{name}/{file}", "X-Linked-Size": size, "X-Linked-ETag": etag}
            self._send(b"", {**headers, "X-Repo-Commit": COMMIT}, body=body, status=302)
        else:
            data = self.hub.spoil.get(file, data)
            self._send(data, {"ETag": f'"{_git_hash(repository.files[file])}"', "X-Repo-Commit": COMMIT}, body=body)

    def _large(self, name: str, file: str, *, body: bool) -> None:
        data = self.hub.spoil.get(file, self.hub.repositories[name].files[file])
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        part = data[start:]
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        cut = part[: self.hub.cut_after] if self.hub.cut_after is not None else part
        self.hub.sent.append((file, start, len(cut)))
        self._send(cut, headers, body=body, status=206 if asked else 200, length=len(part))
        self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"", {"X-Error-Code": code}, body=False, status=status)

    def _send(
        self, data: bytes, headers: dict[str, str], *, body: bool, status: int = 200, length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _sibling(file: str, data: bytes) -> dict[str, object]:
    found: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": _git_hash(data)}
    if file.endswith(LARGE):
        found["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
    return found


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
