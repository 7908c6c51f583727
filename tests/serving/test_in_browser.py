"""The status page in a real browser: what it shows, in both schemes of colours and on a phone, and that it goes on.

With `STATUS_PAGE_PICTURES=docs/images` the pictures of the documents are taken anew.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.checkpointer import eventually, recovered
from tests.support.chromium import Chromium, chromium
from tests.support.standing import Standing, standing

ROOT = Path(__file__).parents[2]
DESKTOP, PHONE = 1100, 360

HEADINGS = "[...document.querySelectorAll('h1, h2')].map((heading) => heading.firstChild.textContent.trim())"
BEYOND = """[...document.querySelectorAll("body *")]
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map((element) => element.outerHTML.slice(0, 80))"""
TITLE = "document.querySelector('h1').textContent"
ASKED = "performance.getEntriesByName(new URL('status.json', location)).length"
"""How often the page has asked for what has changed."""


@asynccontextmanager
async def served(stands: Standing) -> AsyncIterator[str]:
    """The application on a port of its own, mounted as the documents say; its address."""
    app = Starlette(routes=[Mount("/checkpointing", stands.app)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/checkpointing/"
    finally:
        server.should_exit = True
        await serving


async def true_in(browser: Chromium, expression: str) -> None:
    """Wait until this is true of the page."""
    async with asyncio.timeout(20):
        while not await browser.evaluate(expression):  # noqa: ASYNC110  # the page tells nobody
            await asyncio.sleep(0.1)


def luminance(colour: str) -> float:
    """From 0, black, to 255, white."""
    return sum(int(part) for part in re.findall(r"\d+", colour)) / 3


async def check_picture(browser: Chromium, url: str, *, width: int, dark: bool, title: str) -> bytes:
    """Open the page and see that everything is on it, legible, and within the screen."""
    browser.complaints.clear()
    await browser.open(url, width=width, dark=dark)
    assert await browser.evaluate(TITLE) == title
    assert (await browser.evaluate("document.title")).startswith(title)
    headings = await browser.evaluate(HEADINGS)
    assert {title, "Figures"} < set(headings)
    assert await browser.evaluate(BEYOND) == []
    lamp = await browser.evaluate("getComputedStyle(document.querySelector('.lamp')).backgroundColor")
    picture = await browser.picture()
    assert browser.complaints == []
    colours = await browser.colours(picture)
    commonest = max(colours, key=lambda colour: colours[colour])
    assert (luminance(commonest) < 50) if dark else (luminance(commonest) > 205)
    assert colours[commonest] < 0.9 * sum(colours.values())
    assert colours[lamp] > 100, "the state is to be seen from afar"
    assert len(colours) > 50, "there is text on it"
    return picture


def save(name: str, picture: bytes) -> None:
    folder = os.environ.get("STATUS_PAGE_PICTURES")
    if folder:
        (ROOT / folder).mkdir(exist_ok=True)
        (ROOT / folder / f"{name}.png").write_bytes(picture)


@pytest.mark.parametrize(("state", "title"), [("healthy", "Healthy"), ("outage", "Outage"), ("draining", "Draining")])
async def test_page_is_pleasant_in_both_colours_and_on_a_phone(
    state: str, title: str, private_postgres: LocalPostgres
) -> None:
    unhurried = 25.0 if "STATUS_PAGE_PICTURES" in os.environ else 0.0
    async with (
        standing(state, private_postgres, unhurried=unhurried) as stands,
        served(stands) as url,
        chromium() as browser,
    ):
        for dark in (False, True):
            picture = await check_picture(browser, url, width=DESKTOP, dark=dark, title=title)
            save(f"status-{state}-{'dark' if dark else 'light'}", picture)
        await check_picture(browser, url, width=PHONE, dark=False, title=title)


async def test_open_page_follows_an_outage_without_being_loaded_again(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres) as stands, served(stands) as url, chromium() as browser:
        await browser.open(url, width=DESKTOP)
        await browser.evaluate("window.before = document.querySelector('#outages').firstChild")
        await true_in(browser, f"{ASKED} >= 2")
        assert await browser.evaluate("window.before.isConnected"), "what has not changed is not drawn again"
        await asyncio.to_thread(private_postgres.kill)
        await true_in(browser, f"{TITLE} === 'Outage'")
        assert await browser.evaluate("document.documentElement.dataset.mode") == "outage"
        assert (await browser.evaluate("document.title")).startswith("Outage")
        assert not await browser.evaluate("window.before.isConnected")
        await asyncio.to_thread(private_postgres.start)
        await recovered(stands.manager)
        await true_in(browser, f"{TITLE} === 'Healthy'")
        assert await browser.evaluate("'before' in window"), "it was not loaded again"
        assert browser.complaints == []


async def test_text_that_is_selected_stays_while_the_page_goes_on(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres) as stands, served(stands) as url, chromium() as browser:
        await browser.open(url, width=DESKTOP)
        await browser.evaluate("getSelection().selectAllChildren(document.querySelector('#clock'))")
        selected = await browser.evaluate("String(getSelection())")
        assert selected.startswith("As of")
        await true_in(browser, f"{ASKED} >= 2")
        assert await browser.evaluate("String(getSelection())") == selected


async def test_page_says_when_the_application_does_not_answer_any_more(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres) as stands, chromium() as browser:
        async with served(stands) as url:
            await browser.open(url, width=DESKTOP)
            assert await browser.evaluate("document.querySelector('#silence').hidden")
        await true_in(browser, "!document.querySelector('#silence').hidden")
        said = await browser.evaluate("document.querySelector('#silence').textContent")
        assert said.startswith("The application has not answered since")
        assert await browser.evaluate(TITLE) == "Healthy", "as of then"


async def test_page_is_whole_without_its_script(private_postgres: LocalPostgres) -> None:
    async with standing("outage", private_postgres) as stands, served(stands) as url, chromium() as browser:
        await browser.open(url, width=PHONE, script=False)
        assert await browser.evaluate(TITLE) == "Outage"
        assert "cannot be used" in await browser.evaluate("document.querySelector('#points').textContent")
        assert await browser.evaluate("document.querySelectorAll('noscript meta[http-equiv=refresh]').length") == 1
        assert browser.complaints == []
