"""Tables that are gone and privileges that were taken away: raised at start, journaled and alarmed in mid-run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from enhanced_checkpointing import (
    CheckpointerConfigurationError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
)
from tests.support.checkpointer import eventually, opened, postgres, saver_of
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch
from tests.support.twins import assert_equals_twin, run_graphs

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
ROLE = "checkpoint_test_user"


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def set_up(url: str) -> None:
    async with opened(postgres(url)):
        pass


@pytest.fixture
def limited_url(database_url: str) -> Iterator[str]:
    """The URL of the same database for a user who may do with tables what he was granted, and nothing more."""
    execute(database_url, f"CREATE ROLE {ROLE} LOGIN PASSWORD 'limited'")
    parts = urlsplit(database_url)
    _, _, address = parts.netloc.rpartition("@")
    yield urlunsplit(parts._replace(netloc=f"{ROLE}:limited@{address}"))
    execute(database_url, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


def granted(privilege: str = "SELECT, INSERT, UPDATE, DELETE", table: str = ", ".join(TABLES)) -> str:
    return f"GRANT {privilege} ON {table} TO {ROLE}"


def revoked(privilege: str, table: str) -> str:
    return f"REVOKE {privilege} ON {table} FROM {ROLE}"


@pytest.mark.parametrize("table", TABLES)
async def test_table_that_is_gone_although_the_migrations_say_otherwise_ends_the_start(
    table: str, database_url: str, no_leaks: LeakWatch
) -> None:
    await set_up(database_url)
    execute(database_url, f"DROP TABLE {table}")
    with pytest.raises(CheckpointerConfigurationError, match="drop checkpoint_migrations too"):
        await EnhancedCheckpointerManager(postgres(database_url)).initialize()
    execute(database_url, "DROP TABLE checkpoint_migrations")  # as the message says
    async with opened(postgres(database_url, require_primary=True)) as manager:
        await run_graphs(saver_of(manager), ["counting_chain"])


async def test_user_who_may_not_create_tables_is_told_at_the_start(database_url: str, limited_url: str) -> None:
    execute(database_url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(CheckpointerConfigurationError, match="CREATE on"):
        await EnhancedCheckpointerManager(postgres(limited_url)).initialize()


@pytest.mark.parametrize("privilege", PRIVILEGES)
@pytest.mark.parametrize("table", TABLES)
async def test_privilege_that_is_missing_ends_the_start(
    table: str, privilege: str, database_url: str, limited_url: str
) -> None:
    await set_up(database_url)
    execute(database_url, granted(), granted("SELECT", "checkpoint_migrations"), revoked(privilege, table))
    with pytest.raises(CheckpointerConfigurationError, match="Grant the user of DATABASE_URL"):
        await EnhancedCheckpointerManager(postgres(limited_url)).initialize()
    execute(database_url, granted())
    async with opened(postgres(limited_url, require_primary=True)) as manager:
        await run_graphs(saver_of(manager), ["counting_chain"])


@contextmanager
def alarms(caplog: pytest.LogCaptureFixture, fix: str) -> Iterator[None]:
    """Whatever the block does must be alarmed in the log, with the fix, a few times and not once per call."""
    yield
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert all("refuses for a permanent reason" in line and fix in line for line in errors)
    assert len(errors) <= len(TABLES) + 1


BREAKS = {
    "a table is gone": (
        "ALTER TABLE checkpoint_writes RENAME TO hidden",
        "ALTER TABLE hidden RENAME TO checkpoint_writes",
        "Create the tables",
    ),
    "all tables are gone": (
        "ALTER SCHEMA public RENAME TO hidden",
        "ALTER SCHEMA hidden RENAME TO public",
        "Create the tables",
    ),
    "the user may not write": (
        f"REVOKE INSERT, UPDATE, DELETE ON {', '.join(TABLES)} FROM {ROLE}",
        granted(),
        "Grant the user",
    ),
    "the user may not read or write": (
        f"REVOKE ALL ON {', '.join(TABLES)} FROM {ROLE}",
        granted(),
        "Grant the user",
    ),
    "the user may not write one table": (
        f"REVOKE INSERT ON checkpoint_blobs FROM {ROLE}",
        granted(),
        "Grant the user",
    ),
}


@pytest.mark.parametrize(("broken", "mended", "fix"), BREAKS.values(), ids=BREAKS)
async def test_what_is_taken_away_in_mid_run_is_journaled_and_alarmed_and_drained_after_the_repair(
    broken: str,
    mended: str,
    fix: str,
    database_url: str,
    limited_url: str,
    twin_database_url: str,
    caplog: pytest.LogCaptureFixture,
    no_leaks: LeakWatch,
) -> None:
    await set_up(database_url)
    execute(database_url, granted(), granted("SELECT", "checkpoint_migrations"))
    names = ["counting_chain", "subgraph"]

    async def break_once(turn: int) -> None:
        nonlocal broken
        if turn == 1 and broken:
            await asyncio.to_thread(execute, database_url, broken)  # a probe may be under way
            broken = ""

    async with opened(postgres(limited_url)) as manager:
        saver = saver_of(manager)
        breaker = manager.health_status["primary_checkpointer"]["breaker"]
        with alarms(caplog, fix):
            await run_graphs(saver, names, between=break_once)
            await manager.health_check()
        assert manager.health_status["journal"]["pending"] > 0
        assert manager.health_status["primary_checkpointer"]["breaker"] == breaker == "closed"
        assert manager.health_status["overall_status"] == "degraded"
        await asyncio.to_thread(execute, database_url, mended)
        assert await manager.wait_drained(10.0)
        await eventually(lambda: manager.health_status["overall_status"] == "healthy")
    await assert_equals_twin(database_url, twin_database_url, names)


async def test_thread_that_is_not_warm_is_unavailable_and_the_error_names_the_fix(
    database_url: str, limited_url: str, no_leaks: LeakWatch
) -> None:
    await set_up(database_url)
    execute(database_url, granted(), granted("SELECT", "checkpoint_migrations"))
    case = GRAPHS["counting_chain"]
    async with opened(postgres(limited_url)) as manager:
        found = await run_case(case, saver_of(manager), "thread")
    async with opened(postgres(limited_url, on_unknown_thread="raise")) as manager:
        graph = case.builder().compile(checkpointer=saver_of(manager))
        execute(database_url, f"REVOKE ALL ON checkpoints FROM {ROLE}")
        with pytest.raises(CheckpointUnavailableError, match="Grant the user of DATABASE_URL"):
            await graph.aget_state({"configurable": {"thread_id": "thread"}})
        with pytest.raises(CheckpointUnavailableError, match="Grant the user of DATABASE_URL"):
            await manager.list_threads()
        execute(database_url, granted())
        state = await graph.aget_state({"configurable": {"thread_id": "thread"}})
        assert state.values == found
