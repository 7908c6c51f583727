"""The examples run as they are: without a database, and against a real PostgreSQL that is killed under them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from examples.fastapi_app import app
from tests.support.leaks import LeakWatch

TEN_LINES = Path(__file__).parents[2] / "examples" / "ten_lines.py"
CHOOSES_THE_PRIMARY = ("DATABASE_URL", "POSTGRES_URL", "DEV_USE_SQLITE", "SQLITE_PATH")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CHECKPOINT_") or name.upper() in CHOOSES_THE_PRIMARY:
            monkeypatch.delenv(name)


@pytest.fixture
def on_postgres(monkeypatch: pytest.MonkeyPatch, database_url: str) -> str:
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "production")
    monkeypatch.setenv("CHECKPOINT_JOURNAL", "memory")
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def messages_of_ten_lines(folder: Path) -> list[str]:
    """Run the program and return the kinds of the messages that it printed, in order."""
    ran = subprocess.run([sys.executable, TEN_LINES], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return re.findall(r"(Human|AI)Message\(", ran.stdout)


def test_ten_lines_run_without_a_database_and_leave_no_file(tmp_path: Path) -> None:
    assert messages_of_ten_lines(tmp_path) == ["Human", "AI"]
    assert list(tmp_path.iterdir()) == []


def test_ten_lines_go_on_with_the_conversation_on_postgres(tmp_path: Path, on_postgres: str) -> None:
    assert messages_of_ten_lines(tmp_path) == ["Human", "AI"]
    assert messages_of_ten_lines(tmp_path) == ["Human", "AI", "Human", "AI"]


@asynccontextmanager
async def running_service() -> AsyncIterator[httpx.AsyncClient]:
    """The service from its start-up to its shutdown, and a client of it."""
    transport, routes = httpx.ASGITransport(app), list(app.router.routes)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client
    app.router.routes[:] = routes  # a process starts once, these tests start the service again and again


async def say(client: httpx.AsyncClient, text: str) -> str:
    response = await client.post("/threads/one/messages", json={"text": text})
    assert response.status_code == 200, response.text
    return str(response.json()["reply"])


async def test_service_remembers_within_a_run_without_a_database(no_leaks: LeakWatch) -> None:
    async with running_service() as client:
        assert await say(client, "good morning") == "You said 1 things, the first was: good morning"
        assert await say(client, "and again") == "You said 2 things, the first was: good morning"
        other = {"X-Forwarded-User": "bob"}
        refused = await client.post("/threads/one/messages", json={"text": "what did they say"}, headers=other)
        assert (refused.status_code, refused.json()) == (404, {"detail": "There is no such conversation."})
        ready = await client.get("/checkpointing/readyz")
        assert (ready.status_code, ready.json()["overall_status"]) == (200, "healthy")
        metrics = (await client.get("/checkpointing/metrics")).text
        assert 'checkpointer_operations_total{backend="memory",operation="put",outcome="primary"}' in metrics
    assert app.state.manager.health_status["overall_status"] == "unhealthy", "shutdown closed the checkpointer"


async def test_service_remembers_over_a_restart_on_postgres(on_postgres: str, no_leaks: LeakWatch) -> None:
    async with running_service() as client:
        await say(client, "good morning")
    async with running_service() as client:
        assert await say(client, "and again") == "You said 2 things, the first was: good morning"


async def test_service_answers_and_stays_ready_while_postgres_is_dead_and_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, private_postgres: LocalPostgres
) -> None:
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", private_postgres.url())
    async with running_service() as client:
        await say(client, "good morning")
        await asyncio.to_thread(private_postgres.kill)
        assert await say(client, "still there") == "You said 2 things, the first was: good morning"
        ready = await client.get("/checkpointing/readyz")
        assert (ready.status_code, ready.json()["overall_status"]) == (200, "degraded")
        assert "<h1>Outage</h1>" in (await client.get("/checkpointing/")).text
        await asyncio.to_thread(private_postgres.start)
        manager: EnhancedCheckpointerManager = app.state.manager
        assert await manager.wait_drained(30)
    async with running_service() as client:
        assert await say(client, "and again") == "You said 3 things, the first was: good morning"


async def test_service_refuses_a_thread_that_nobody_can_read_now_instead_of_starting_it_afresh(
    monkeypatch: pytest.MonkeyPatch, private_postgres: LocalPostgres
) -> None:
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", private_postgres.url())
    async with running_service() as client:
        await say(client, "good morning")
    private_postgres.stop()
    async with running_service() as client:
        response = await client.post("/threads/one/messages", json={"text": "are you there"})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    private_postgres.start()
    async with running_service() as client:
        assert await say(client, "and again") == "You said 2 things, the first was: good morning"
