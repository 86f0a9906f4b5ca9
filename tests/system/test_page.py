"""A person in front of the chat page: a real Chromium types, and reads the streamed answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import expect

from build_scripts.local_cluster import LocalCluster
from tests.helpers.browser import DESKTOP, PHONE, ask_page, chromium, open_page, read_answer, type_question
from tests.helpers.scripted_server import (
    FixedAdmin,
    ScriptedDeployment,
    byte_level_folder,
    cluster_status,
    serving,
)
from vramancer_cli.cluster.status import DeviceStatus
from vramancer_cli.errors import NodeLostError
from vramancer_cli.serving.settings import ServerSettings

pytestmark = pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")

QUICK = ServerSettings(close_s=0.2)
ANSWER = "Machines hold **one** model.\n\n```\nvramancer join\n```\n\n- <b>first</b>\n- second"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
async def url(folder: Path) -> AsyncIterator[str]:
    async with serving(ScriptedDeployment(folder, text=ANSWER, pause_s=0.01), settings=QUICK) as server:
        yield server.url


async def test_a_question_typed_into_the_page_of_a_real_cluster_is_answered(three_nodes: LocalCluster) -> None:
    answer = await ask_page(three_nodes.head.api_url, "What is VRAMancer?")
    assert len(answer.split()) >= 3


async def test_a_typed_question_streams_its_answer_as_safe_markup(url: str) -> None:
    complaints: list[str] = []
    async with open_page(url, complaints=complaints) as page:
        await type_question(page, "What is this?")
        first = page.get_by_role("article", name="Answer").locator(".said")
        await expect(first).to_contain_text("Machines")
        assert await page.get_by_role("article", name="Answer").get_attribute("aria-busy") == "true"
        await read_answer(page)
        assert await first.locator("strong").inner_text() == "one"
        assert (await first.locator("pre").inner_text()).strip() == "vramancer join"
        assert await first.locator("li").all_inner_texts() == ["<b>first</b>", "second"]
        assert await first.locator("b").count() == 0
        await expect(page.get_by_text("tokens/s", exact=False).first).to_be_visible()
        for node in ("workshop layers 0–2", "old-laptop layers 3–4", "living-room-mac layers 5–7"):
            await expect(page.get_by_role("article", name="Answer").get_by_text(node)).to_be_visible()
    assert complaints == []


async def test_escape_stops_the_answer_and_the_server_hears_of_it(folder: Path) -> None:
    endless = ScriptedDeployment(folder, endless=True, pause_s=0.02, context_tokens=10**6)
    async with serving(endless, settings=QUICK) as server, open_page(server.url) as page:
        await type_question(page, "Never stop")
        await expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
        await expect(page.get_by_role("article", name="Answer").locator(".said")).to_contain_text("Machines")
        await page.keyboard.press("Escape")
        await expect(page.get_by_text("Stopped.")).to_be_visible()
        await expect(page.get_by_role("button", name="Stop the answer")).to_be_hidden()
        await endless.aborted.wait()


async def test_a_lost_node_is_told_in_a_sentence_and_the_page_goes_on(folder: Path) -> None:
    lost = ScriptedDeployment(folder, text="half", error=NodeLostError("The node 'attic' was lost.", node="attic"))
    async with serving(lost, settings=QUICK) as server, open_page(server.url) as page:
        await type_question(page, "What is this?")
        await expect(page.get_by_role("alert")).to_have_text("The node 'attic' was lost.")
        lost.error = None
        await type_question(page, "And now?")
        assert await read_answer(page) == "half"
        # the half answer stays in the conversation, and the model sees it
        assert len(lost.requests[1].prompt) > 2 * len(lost.requests[0].prompt)


async def test_keys_and_examples(url: str) -> None:
    async with open_page(url) as page:
        box = page.get_by_label("Your question")
        await page.keyboard.type("one")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("two")
        await expect(box).to_have_value("one\ntwo")
        await box.fill("")
        await box.blur()
        await page.keyboard.press("/")
        await expect(box).to_be_focused()
        await expect(box).to_have_value("")
        await page.get_by_role("button", name="How do I add another machine?").click()
        await read_answer(page)
        await page.keyboard.press("ArrowUp")
        await expect(box).to_have_value("How do I add another machine?")
        await page.get_by_role("button", name="New chat").click()
        await expect(page.get_by_role("article")).to_have_count(0)
        await expect(page.get_by_role("button", name="What is VRAMancer?")).to_be_visible()


async def test_a_full_context_leaves_the_oldest_out_and_says_so(folder: Path) -> None:
    small = ScriptedDeployment(folder, text="word " * 12, context_tokens=80)
    async with serving(small, settings=QUICK) as server, open_page(server.url) as page:
        for _ in range(2):
            await type_question(page, "a question of some length, as people ask")
            await read_answer(page)
        await expect(page.get_by_text("The context is full")).to_be_visible()


async def test_what_is_missing_is_said_while_nothing_can_be_asked() -> None:
    admin = FixedAdmin(replace(cluster_status(), state="waiting", reason="One more machine is needed."))
    async with serving(admin=admin, settings=QUICK) as server, open_page(server.url) as page:
        await expect(page.get_by_text("One more machine is needed.")).to_be_visible()
        await expect(page.get_by_role("button", name="What is VRAMancer?")).to_be_disabled()
        await page.keyboard.type("hello")
        await expect(page.get_by_role("button", name="Send")).to_be_disabled()


async def test_each_device_of_a_machine_has_its_part_of_the_bar_and_its_line(folder: Path) -> None:
    status = cluster_status()
    head, laptop, mac = status.nodes
    first = DeviceStatus("cuda:0", "a large GPU", 6 << 30, 24 << 30, (3, 4), 0)
    second = DeviceStatus("cuda:1", "a small GPU", 1 << 30, 8 << 30, (4, 5), 0)
    admin = FixedAdmin(replace(status, nodes=(head, replace(laptop, devices=(first, second)), mac)))
    async with (
        serving(ScriptedDeployment(folder), admin=admin, settings=QUICK) as server,
        open_page(server.url) as page,
    ):
        await expect(page.locator("#bar > span")).to_have_count(4)
        await expect(page.locator("#bar")).to_have_attribute(
            "aria-label",
            "workshop: layers 0–2; old-laptop cuda:0: layer 3; old-laptop cuda:1: layer 4; living-room-mac: layers 5–7",
        )
        machine = page.locator("#nodes .node").nth(1)
        for words in ("cuda:0", "cuda:1", "a large GPU + a small GPU", "6.0 GiB of 24.0 GiB", "1.0 GiB of 8.0 GiB"):
            await expect(machine).to_contain_text(words)
        await expect(page.get_by_text("answers from 3 machines")).to_be_visible()


async def test_weights_that_a_machine_fetches_are_shown_with_bytes_and_a_bar() -> None:
    status = cluster_status()
    fetching = replace(
        status.nodes[1], state="loading", loaded_fraction=0.0, fetched_bytes=96 << 20, fetch_bytes=256 << 20
    )
    admin = FixedAdmin(replace(status, state="loading", nodes=(status.nodes[0], fetching, status.nodes[2])))
    async with serving(admin=admin, settings=QUICK) as server, open_page(server.url) as page:
        machine = page.locator("#nodes .node").nth(1)
        await expect(machine.locator(".tag")).to_have_text("fetching 37 %")
        gauge = machine.locator(".memory").filter(has_text="fetched")
        await expect(gauge).to_have_text("96 MiB of 256 MiB fetched")
        used = await gauge.locator("span").first.evaluate("bar => bar.style.getPropertyValue('--used')")
        assert used == "38%"
        loading = replace(fetching, fetched_bytes=256 << 20, loaded_fraction=0.25)
        admin.current = replace(admin.current, nodes=(status.nodes[0], loading, status.nodes[2]))
        await expect(machine.locator(".tag")).to_have_text("loading 25 %")
        await expect(gauge).to_have_count(0)


async def test_a_server_with_a_token_asks_for_it_once(folder: Path) -> None:
    settings = ServerSettings(api_token="secret", close_s=0.2)
    async with serving(ScriptedDeployment(folder), settings=settings) as server, open_page(server.url) as page:
        await page.get_by_label("Key", exact=True).fill("secret")
        await page.keyboard.press("Enter")
        await page.get_by_label("Your question").click()
        await type_question(page, "Hello?")
        assert await read_answer(page) == "Machines share one model."


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 568)])
async def test_nothing_sticks_out_at_any_width(url: str, size: tuple[int, int]) -> None:
    async with open_page(url, size) as page:
        await type_question(page, "x" * 200)
        await read_answer(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        box = await page.get_by_label("Your question").bounding_box()
        assert box is not None and box["y"] + box["height"] <= size[1]


async def test_nothing_is_fetched_from_elsewhere(url: str) -> None:
    async with open_page(url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.reload()
        await type_question(page, "What is this?")
        await read_answer(page)
        assert asked and all(address.startswith(url) for address in asked)
