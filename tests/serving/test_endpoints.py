"""What each path answers in each state, against a real PostgreSQL that is killed, frozen and started again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from enhanced_checkpointing import (
    CheckpointerConfigurationError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
)
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.observability.events import Event, ProbeFinished
from enhanced_checkpointing.observability.recent import Recent
from enhanced_checkpointing.serving import checkpointing_app
from tests.support.checkpointer import eventually, postgres, recovered
from tests.support.leaks import LeakWatch
from tests.support.standing import STATES, THREADS, standing


@dataclass(frozen=True)
class Expected:
    """`state` is the value of the metric; None: it is left out, as nothing is open."""

    overall: str
    title: str
    state: float | None
    status: int = 200


EXPECTED = {
    "healthy": Expected("healthy", "Healthy", 0.0),
    "outage": Expected("degraded", "Outage", 2.0),
    "draining": Expected("degraded", "Draining", 1.0),
    "refusing": Expected("unhealthy", "Writes are refused", 2.0, 503),
    "closed": Expected("unhealthy", "Not open", None, 503),
    "never opened": Expected("unhealthy", "Not open", None, 503),
    "switched off": Expected("healthy", "Switched off", None),
}


def metrics_of(text: str) -> dict[str, float]:
    """The samples without labels."""
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@pytest.mark.parametrize("state", STATES)
async def test_every_path_tells_the_state(state: str, private_postgres: LocalPostgres, no_leaks: LeakWatch) -> None:
    expected = EXPECTED[state]
    async with standing(state, private_postgres) as stands, stands.client() as client:
        alive = await client.get("/livez")
        assert (alive.status_code, alive.text) == (200, "alive\n")

        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["overall_status"]) == (expected.status, expected.overall)
        assert ready.json().keys() == {"overall_status", "primary_healthy", "journal_pending"}

        health = await client.get("/health")
        assert (health.status_code, health.json()["overall_status"]) == (expected.status, expected.overall)
        assert health.json().keys() == stands.manager.health_status.keys()

        metrics = await client.get("/metrics")
        assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        values = metrics_of(metrics.text)
        assert values.get("checkpointer_state") == expected.state
        if state in ("outage", "draining"):
            assert values["checkpointer_journal_pending"] > 0
            assert 'outcome="journaled"' in metrics.text

        page = await client.get("/")
        assert f"<h1>{expected.title}</h1>" in page.text
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        update = await client.get("/status.json")
        assert f"<h1>{expected.title}</h1>" in update.json()["sections"]["headline"]
        for response in (alive, ready, health, metrics, page, update, await client.get("/nothing")):
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_whole_outage_is_on_the_page_and_in_the_metrics_when_it_is_over(private_postgres: LocalPostgres) -> None:
    async with standing("outage", private_postgres) as stands, stands.client() as client:
        journaled = stands.manager.health_status["journal"]["pending"]
        assert journaled >= THREADS
        await asyncio.to_thread(private_postgres.start)
        await recovered(stands.manager)
        await eventually(lambda: stands.manager.health_status["primary_checkpointer"]["outage_seconds"] is None)
        text = (await client.get("/metrics")).text
        assert f'checkpointer_reconcile_operations_total{{backend="postgres"}} {float(journaled)}' in text
        outages = (await client.get("/status.json")).json()["sections"]["outages"]
        assert "goes on" not in outages
        assert outages.count(f"<span>{journaled:,}</span>") == 2, "journaled, and written back"


async def test_probes_answer_at_once_while_the_server_is_frozen(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres, deadline=3.0) as stands, stands.client() as client:
        await asyncio.to_thread(private_postgres.freeze)
        checking = asyncio.create_task(client.get("/health", params={"fresh": "1"}))
        slowest = 0.0
        for _ in range(50):
            for path in ("/readyz", "/livez", "/health", "/metrics", "/status.json"):
                begun = time.perf_counter()
                assert (await client.get(path)).status_code == 200
                slowest = max(slowest, time.perf_counter() - begun)
        assert not checking.done(), "the check, which does ask the server, still waits for it"
        assert slowest < 0.2
        fresh = await checking
        assert (fresh.status_code, fresh.json()["primary_healthy"]) == (200, False)
        await asyncio.to_thread(private_postgres.thaw)


class Probes(Recent):
    """Counts the probes of the primary."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, event: Event) -> None:
        self.count += isinstance(event, ProbeFinished)


async def test_fresh_check_probes_once_for_all_who_ask(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres, probe_interval=300.0) as stands, stands.client() as client:
        probes = Probes()
        stands.manager.listen(probes)
        await client.get("/health", params={"fresh": "0"})
        assert probes.count == 0
        answers = await asyncio.gather(*(client.get("/health", params={"fresh": "1"}) for _ in range(20)))
        assert {answer.json()["overall_status"] for answer in answers} == {"healthy"}
        assert probes.count == 1
        await asyncio.sleep(1.1)
        await client.get("/health", params={"fresh": "1"})
        assert probes.count == 2


async def test_fresh_check_finds_at_once_what_the_next_probe_would(private_postgres: LocalPostgres) -> None:
    async with standing("healthy", private_postgres, probe_interval=300.0) as stands, stands.client() as client:
        await asyncio.to_thread(private_postgres.kill)
        assert (await client.get("/health")).json()["primary_healthy"] is True
        assert (await client.get("/health", params={"fresh": "1"})).json()["primary_healthy"] is False
        assert (await client.get("/health")).json()["primary_healthy"] is False


async def test_fresh_check_during_a_stop_is_no_error(private_postgres: LocalPostgres) -> None:
    async with standing("outage", private_postgres) as stands, stands.client() as client:
        stopping = asyncio.create_task(stands.manager.cleanup())
        statuses = set()
        while not stopping.done():
            statuses.add((await client.get("/health", params={"fresh": "1"})).status_code)
            await asyncio.sleep(0.01)
        assert statuses <= {200, 503}
        assert (await client.get("/health", params={"fresh": "1"})).status_code == 503


async def test_manager_on_a_loop_of_its_own_is_served_from_another_one(private_postgres: LocalPostgres) -> None:
    async with standing("outage", private_postgres, enable_async=False) as stands, stands.client() as client:
        for path in ("/readyz", "/health?fresh=1", "/metrics", "/", "/status.json"):
            assert (await client.get(path)).status_code == 200, path


async def test_application_outlives_a_stop_and_serves_the_next_start(database_url: str) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url))
    transport = httpx.ASGITransport(checkpointing_app(manager))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/readyz")).status_code == 503
            async with manager:
                assert (await client.get("/readyz")).status_code == 200
                assert metrics_of((await client.get("/metrics")).text)["checkpointer_state"] == 0.0
            assert "checkpointer_state" not in (await client.get("/metrics")).text


async def test_application_is_mounted_in_fastapi() -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(EnhancedCheckpointerManager(create_memory_checkpointer()))
        app = FastAPI()
        app.mount("/checkpointing", checkpointing_app(manager))
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))
        page = await client.get("/checkpointing", follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, "/checkpointing/")
        assert (await client.get("/checkpointing/readyz")).json()["overall_status"] == "healthy"
        assert (await client.post("/checkpointing/readyz")).status_code == 405
        assert (await client.head("/checkpointing/livez")).status_code == 200


OPEN, GUARDED = ("/livez", "/readyz"), ("/", "/status.json", "/health", "/health?fresh=1", "/metrics")
TOKEN = "a-token-of-the-operators-0123456789"


async def knocks(request: Request) -> bool:
    return request.headers.get("X-Knock") == "three times"


def knocks_at_once(request: Request) -> bool:
    if request.headers.get("X-Knock") == "once":
        raise HTTPException(403, headers={"WWW-Authenticate": "Knock"})
    return request.headers.get("X-Knock") == "three times"


@pytest.mark.parametrize("authenticate", [None, knocks, knocks_at_once])
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_only_who_shows_the_token_or_is_let_in_sees_threads_and_errors(
    token: str | None, authenticate: Callable[[Request], bool | Awaitable[bool]] | None
) -> None:
    manager = EnhancedCheckpointerManager(create_memory_checkpointer(status_token=token))
    app = checkpointing_app(manager, authenticate=authenticate)
    async with manager, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in OPEN:
            assert (await client.get(path)).status_code == 200, path
        guarded = token is not None or authenticate is not None
        wrong = (
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"bearer{TOKEN}",
            "Bearer \xe4",
            f"Basic {TOKEN}",
        )
        for path in GUARDED:
            for header in wrong:
                answer = await client.get(path, headers={b"Authorization": header.encode("latin-1")})
                assert answer.status_code == (401 if guarded else 200), (path, header)
                assert ("WWW-Authenticate" in answer.headers) is guarded
                assert not guarded or "thread" not in answer.text
            told = await client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert told.status_code == (200 if token is not None or not guarded else 401)
            told = await client.get(path, headers={"X-Knock": "three times"})
            assert told.status_code == (200 if authenticate is not None or not guarded else 401)
        if authenticate is knocks_at_once:
            assert (await client.get("/health", headers={"X-Knock": "once"})).headers["WWW-Authenticate"] == "Knock"
    assert TOKEN not in repr(manager.config) + str(manager.config.redacted()) + manager.config.model_dump_json()


@pytest.mark.parametrize(
    "token", ["short", "", "a token with spaces in it", "ein-schlüssel-mit-umlauten", "x" * 20 + "\n"]
)
def test_token_that_is_easily_guessed_or_fits_in_no_header_is_refused(token: str) -> None:
    with pytest.raises(CheckpointerConfigurationError, match="hard to guess") as refused:
        create_memory_checkpointer(status_token=token)
    assert token not in str(refused.value) or not token


async def test_redirect_stays_on_the_host_that_was_asked() -> None:
    manager = EnhancedCheckpointerManager(create_memory_checkpointer())
    app = checkpointing_app(manager)
    outer = Starlette(routes=[Mount("/checkpointing", app)])
    for asked, prefix in ((app, ""), (outer, "/checkpointing")):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asked), base_url="http://test") as client:
            answer = await client.get(f"{prefix}/health/?fresh=1", headers={"Host": "elsewhere.example.org"})
            assert answer.headers["Location"] == f"{prefix}/health?fresh=1"


@pytest.mark.parametrize("package", ["starlette", "jinja2", "prometheus_client"])
def test_missing_package_is_told_with_the_extra_that_brings_it(package: str) -> None:
    program = f"""
import sys
sys.modules["{package}"] = None
from enhanced_checkpointing import EnhancedCheckpointerManager, create_memory_checkpointer
from enhanced_checkpointing.serving import checkpointing_app, langgraph_server
try:
    checkpointing_app(EnhancedCheckpointerManager(create_memory_checkpointer()))
except Exception as error:
    print(type(error).__name__, error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == (
        f"CheckpointerConfigurationError checkpointing_app() needs {package}: "
        "pip install 'enhanced-checkpointing[serving]'\n"
    )
