"""A person at the chat page: a real Chromium, driven through Playwright. Nothing in here knows which server answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Page, async_playwright, expect

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = (1280, 800)
PHONE = (390, 844)


def chromium() -> str | None:
    """Where the system's Chromium is, if it has one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@asynccontextmanager
async def open_page(
    url: str, size: tuple[int, int] = DESKTOP, scheme: str = "light", complaints: list[str] | None = None
) -> AsyncIterator[Page]:
    """The page at `url`, loaded. What its console says as warning or error is added to `complaints`."""
    said = complaints if complaints is not None else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            page = await browser.new_page(
                viewport={"width": size[0], "height": size[1]},
                color_scheme="dark" if scheme == "dark" else "light",
            )
            page.on("console", lambda m: said.append(m.text) if m.type in {"error", "warning"} else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            await page.goto(url)
            yield page
        finally:
            await browser.close()


async def type_question(page: Page, question: str, timeout_s: float = 60.0) -> None:
    """Types the question where the focus is and presses Enter, once the page knows a model to ask."""
    box = page.get_by_label("Your question")
    await expect(box).to_be_focused()
    await page.keyboard.type(question)
    await expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=timeout_s * 1000)
    await page.keyboard.press("Enter")


async def read_answer(page: Page, timeout_s: float = 60.0) -> str:
    """The text of the last answer once it has ended."""
    answer = page.get_by_role("article", name="Answer").last
    await expect(answer).to_have_attribute("aria-busy", "false", timeout=timeout_s * 1000)
    return (await answer.locator(".said").inner_text()).strip()


async def ask_page(url: str, question: str, timeout_s: float = 60.0) -> str:
    """Opens the page, asks one question by keyboard, and returns the whole answer as a reader sees it."""
    async with open_page(url) as page:
        await type_question(page, question, timeout_s)
        return await read_answer(page, timeout_s)
