from __future__ import annotations

import re
from importlib import resources

from aiohttp import ClientSession

from tests.helpers.scripted_server import serving
from vramancer_cli.serving.page_routes import FILES

PAGE = resources.files("vramancer_cli.serving") / "page"


async def test_every_file_of_the_page_is_served_under_a_strict_policy() -> None:
    async with serving() as server, ClientSession(server.url) as http:
        for path, (name, content_type) in FILES.items():
            async with http.get(path) as reply:
                assert reply.status == 200 and reply.content_type == content_type
                assert await reply.read() == (PAGE / name).read_bytes()
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    for name, _ in FILES.values():
        text = (PAGE / name).read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text), name


def test_what_the_page_refers_to_is_served() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="(/[^"]*)"', html)) <= set(FILES)
    assert not re.search(r"\son\w+=|<style|style=|<script(?![^>]*src=)", html)


def test_model_text_never_becomes_markup() -> None:
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_every_id_that_the_script_asks_for_is_on_the_page() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'\$\("([\w-]+)"\)', (PAGE / "page.js").read_text(encoding="utf-8")))
    assert asked and asked <= set(re.findall(r'id="([\w-]+)"', html))
