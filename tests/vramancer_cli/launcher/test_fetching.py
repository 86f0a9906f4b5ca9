"""Fetching from a real HTTP server on loopback that can break off, forget ranges, or serve something else."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.tiny_runtime import TinyRuntime, tiny_runtime
from vramancer_cli.errors import UsageError
from vramancer_cli.launcher.fetching import FetchError, WrongRuntimeError, fetch, part_file, runtime_url


@dataclass
class FileServer:
    """Serves `data`; every answer ends after `most_bytes`; `ranges`: whether it knows them. Notes what was asked."""

    data: bytes
    most_bytes: int = 10**9
    ranges: bool = True
    status: int = 200
    length: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRuntime:
    (tmp_path / "made").mkdir()
    return tiny_runtime(tmp_path / "made")


@pytest.fixture
def server(tiny: TinyRuntime) -> Iterator[FileServer]:
    serving = FileServer(tiny.packed.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            serving.asked.append(asked)
            start = int(re.sub(r"\D", "", asked)) if asked and serving.ranges else 0
            body = serving.data[start:]
            self.send_response(serving.status if serving.status != 200 or not start else 206)
            if serving.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: serving.most_bytes])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    serving.url = f"http://127.0.0.1:{http.server_address[1]}/"
    yield serving
    http.shutdown()
    thread.join()
    http.server_close()


def fetched(server: FileServer, tiny: TinyRuntime, target: Path) -> list[int]:
    return list(fetch(server.url, tiny.payload, target, pause_s=0))


def test_it_comes_whole(server: FileServer, tiny: TinyRuntime, tmp_path: Path) -> None:
    done = fetched(server, tiny, tmp_path / "part")
    assert done[-1] == tiny.payload.packed_bytes
    assert (tmp_path / "part").read_bytes() == tiny.packed.read_bytes()
    assert server.asked == [None]


def test_a_broken_connection_is_resumed_where_it_broke(server: FileServer, tiny: TinyRuntime, tmp_path: Path) -> None:
    server.most_bytes = tiny.payload.packed_bytes // 3 + 1
    fetched(server, tiny, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == tiny.packed.read_bytes()
    assert server.asked == [None, f"bytes={server.most_bytes}-", f"bytes={2 * server.most_bytes}-"]


def test_a_server_that_always_breaks_off_is_given_up_and_what_came_is_kept_for_the_next_time(
    server: FileServer, tiny: TinyRuntime, tmp_path: Path
) -> None:
    server.most_bytes = 10
    with pytest.raises(FetchError):
        fetched(server, tiny, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == tiny.packed.read_bytes()[:50]
    server.most_bytes = 10**9
    fetched(server, tiny, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == tiny.packed.read_bytes()
    assert server.asked[-1] == "bytes=50-"


def test_a_server_without_ranges_starts_again(server: FileServer, tiny: TinyRuntime, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"left over")
    server.ranges = False
    fetched(server, tiny, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == tiny.packed.read_bytes()


@pytest.mark.parametrize("length", [True, False])
def test_another_hash_is_refused_and_nothing_is_kept(
    length: bool, server: FileServer, tiny: TinyRuntime, tmp_path: Path
) -> None:
    server.length = length
    server.data = bytes(len(server.data) - 1) + b"x"
    with pytest.raises(WrongRuntimeError):
        fetched(server, tiny, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: FileServer, tiny: TinyRuntime, tmp_path: Path
) -> None:
    server.data += b"more"
    with pytest.raises(WrongRuntimeError):
        fetched(server, tiny, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_an_endless_answer_is_cut_at_the_payloads_size(server: FileServer, tiny: TinyRuntime, tmp_path: Path) -> None:
    server.length = False
    server.data += b"more" * 100_000
    fetched(server, tiny, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == tiny.payload.packed_bytes


def test_a_whole_file_left_by_an_earlier_try_is_not_fetched_again(
    server: FileServer, tiny: TinyRuntime, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(tiny.packed.read_bytes())
    fetched(server, tiny, tmp_path / "part")
    assert server.asked == []


def test_a_refusal_is_told_with_its_number(server: FileServer, tiny: TinyRuntime, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(FetchError, match="404"):
        fetched(server, tiny, tmp_path / "part")


def test_nobody_there_is_told(tiny: TinyRuntime, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="cannot be fetched"):
        list(fetch("http://127.0.0.1:1/", tiny.payload, tmp_path / "part", pause_s=0))


def test_the_url_may_name_the_folder_or_the_file(tiny: TinyRuntime) -> None:
    assert runtime_url("https://example.org/x/", tiny.payload) == f"https://example.org/x/{tiny.payload.file_name}"
    assert runtime_url("http://example.org/file", tiny.payload) == "http://example.org/file"
    for wrong in ("file:///etc/passwd", "ftp://example.org/x", "example.org", "https://"):
        with pytest.raises(UsageError):
            runtime_url(wrong, tiny.payload)


def test_the_part_has_a_name_of_its_own(tiny: TinyRuntime, tmp_path: Path) -> None:
    other = replace(tiny.payload, digest="f" * 64)
    assert part_file(tmp_path, tiny.payload) != part_file(tmp_path, other)
