"""`checkpointing health`: from outside without touching anything, or as a running application says it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.answering_application import application
from tests.support.checkpointer import opened, postgres, sqlite
from tests.support.journals import add, opened_journal
from tests.support.terminal import Ended, command

JOURNAL = Path(".checkpoints/journal")


def health(*arguments: object, **environment: str | None) -> Ended:
    return command("health", "--json", *arguments, **environment)


async def leave(home: str | None = None) -> None:
    async with opened_journal(JOURNAL, home=home) as journal:
        await add(journal, "a")


async def report_of(url: str) -> dict[str, Any]:
    async with opened(postgres(url)) as manager:
        return await manager.health_check()


def test_report_from_outside_has_the_parts_of_that_of_a_manager(private_postgres: LocalPostgres) -> None:
    url = private_postgres.url()
    inside = asyncio.run(report_of(url))
    ended = health("--database-url", url)
    assert ended.code == 0
    assert ended.report["overall_status"] == "healthy"
    assert set(ended.report) - {"source"} == set(inside) - {"audit"}, "whether a process can note is known to it alone"
    for part in ("journal", "divergences", "fallback_checkpointer"):
        assert set(ended.report[part]) == set(inside[part])
    assert "postgres takes writes" in command("health", "--database-url", url).words
    private_postgres.freeze()
    ended = health("--database-url", url, "--timeout", "0.5")
    assert (ended.code, ended.report["overall_status"], ended.seconds < 5) == (1, "degraded", True)
    assert "takes no writes" in command("health", "--database-url", url, "--timeout", "0.5").words


def test_look_from_outside_adopts_nothing_drains_nothing_and_makes_nothing() -> None:
    ended = health("--sqlite", "file.sqlite")
    assert (ended.code, Path("file.sqlite").exists(), JOURNAL.exists()) == (1, False, False)
    assert "nothing was ever stored" in ended.report["primary_checkpointer"]["error"]
    assert command("setup", "--sqlite", "file.sqlite").code == 0
    assert health("--sqlite", "file.sqlite").code == 0
    asyncio.run(leave(str(Path("file.sqlite").resolve())))
    before = {path: path.read_bytes() for path in JOURNAL.iterdir()}
    ended = health("--sqlite", "file.sqlite")
    assert (ended.code, ended.report["overall_status"], ended.report["journal"]["pending"]) == (1, "degraded", 1)
    assert {path: path.read_bytes() for path in JOURNAL.iterdir()} == before
    assert "1 operation waits for the primary" in command("health", "--sqlite", "file.sqlite").words


def test_database_without_tables_is_not_healthy_and_the_reason_is_told(database_url: str) -> None:
    ended = health("--database-url", database_url)
    assert ended.code == 1
    assert "does not exist" in ended.report["primary_checkpointer"]["error"]


def test_journal_that_cannot_be_written_while_the_primary_is_down_is_unhealthy() -> None:
    JOURNAL.parent.mkdir()
    JOURNAL.touch()
    ended = health("--database-url", "postgresql://nobody@127.0.0.1:1/x")
    assert (ended.code, ended.report["overall_status"]) == (1, "unhealthy")
    assert "it cannot be written" in command("health", "--database-url", "postgresql://nobody@127.0.0.1:1/x").words


def test_memory_and_a_checkpointer_that_is_switched_off_are_healthy() -> None:
    assert health().code == 0
    assert health(CHECKPOINT_ENABLED="false").code == 0
    assert health(CHECKPOINT_DEADLINE="soon").code == 2


async def degraded_report() -> dict[str, Any]:
    async with opened(sqlite("file.sqlite")) as manager:
        return manager.health_status | {"overall_status": "unhealthy"}


def test_running_application_is_asked_whatever_its_answer_s_status_is() -> None:
    report = asyncio.run(degraded_report())
    with application(503, json.dumps(report).encode()) as url:
        ended = health("--url", url)
        assert (ended.code, ended.report["overall_status"]) == (1, "unhealthy")
        assert "says the application at" in command("health", "--url", f"{url}/health").words
        assert health("--url", url.replace("//", "//me:s3cr3t@")).report["overall_status"] == "unhealthy"
        assert health("--url", url.replace("//", "//me:other@")).code == 2
    with application(200, json.dumps(report | {"overall_status": "healthy"}).encode(), "/status/health") as url:
        assert health("--url", f"{url}/status/health").code == health("--url", f"{url}/status").code == 0


ODD: tuple[dict[str, Any], ...] = (
    {"overall_status": 5},
    {"overall_status": None},
    {"primary_checkpointer": []},
    {"primary_checkpointer": {"backend": {}}},
    {"primary_checkpointer": {"outage_seconds": "long"}},
    {"journal": None},
    {"journal": {"pending": "many"}},
    {"journal": {"frozen_threads": ["a"]}},
    {"journal": {"size_bytes": 10**400}},
    {"journal": {"pending": 1, "oldest_age_seconds": float("nan")}},
    {"journal": {"foreign": [{}]}},
    {"journal": {"foreign": 3}},
    {"divergences": 3},
    {"divergences": {"count": [1]}},
)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b"[" * 100_000,
        *(json.dumps({"overall_status": "healthy"} | odd).encode() for odd in ODD),
    ],
)
def test_answer_that_is_no_report_is_not_taken_for_one(body: bytes) -> None:
    with application(200, body) as url:
        ended = health("--url", url)
    assert (ended.code, "gave no health report" in ended.report["error"]) == (2, True)


def test_application_that_does_not_answer_is_not_taken_for_healthy() -> None:
    ended = command("health", "--url", "http://me:s3cr3t@127.0.0.1:1")
    assert (ended.code, "Connection refused" in ended.err, "s3cr3t" in ended.err) == (2, True, False)
    assert command("health", "--url", "127.0.0.1:1").code == 2
