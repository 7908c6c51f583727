"""The index of a user's newest checkpoints: used, made once by many, never a reason to fail, and not needed."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.many_threads import GROWING_USER, STEADY_USER, fill_postgres, fill_sqlite
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import HeadQuery
from enhanced_checkpointing.backends.postgres import listing as postgres_directory
from enhanced_checkpointing.backends.postgres import listing as postgres_index
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.backends.sqlite import listing as sqlite_directory
from enhanced_checkpointing.backends.sqlite import listing as sqlite_index
from tests.support.backends import config_of, opened_backend, put
from tests.support.pgbouncer import PgBouncer

BOTH = pytest.mark.parametrize("name", ["sqlite", "postgres"])
FILE = "checkpoints.sqlite"


@asynccontextmanager
async def filled(name: str, database_url: str, folder: Path, checkpoints: int) -> AsyncIterator[Backend]:
    async with opened_backend(config_of(name, database_url, folder)) as backend:
        if name == "sqlite":
            fill_sqlite(folder / FILE, checkpoints)
        else:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                await fill_postgres(connection, checkpoints)
        yield backend


async def explained(database_url: str, text: str, **values: object) -> str:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(postgres_directory.IN_ORDER_SQL)
        cursor = await connection.execute(f"EXPLAIN {text}".encode(), values)
        return "\n".join(str(row[0]) for row in await cursor.fetchall())


def explained_sqlite(path: Path, text: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {text}", ["a"] * text.count("?"))
        return [row[3] for row in rows]


async def test_no_look_at_postgres_scans_a_table(database_url: str, tmp_path: Path) -> None:
    async with filled("postgres", database_url, tmp_path, 20_000):
        looks: list[tuple[str, dict[str, Any]]] = [
            (postgres_directory.FIRST_THREAD_IDS_SQL, {"limit": 500}),
            (postgres_directory.NEXT_THREAD_IDS_SQL, {"after": "thread-5", "limit": 500}),
            (postgres_directory.FIRST_NAMING_SQL, {"user_id": GROWING_USER, "limit": 200}),
            (postgres_directory.NAMING_BELOW_SQL, {"user_id": STEADY_USER, "limit": 200, "checkpoint_id": "1f"}),
            (
                postgres_directory.NAMING_BEHIND_SQL,
                {"user_id": GROWING_USER, "limit": 200, "checkpoint_id": "1f", "thread_id": "thread-5"},
            ),
            (postgres_directory.NEWEST_SQL, {"thread_ids": ["thread-1", "thread-2"]}),
            (postgres_directory.TOPS_SQL, {"thread_ids": ["thread-1", "thread-2"]}),
            (postgres_directory.OWNERS_SQL, {"thread_ids": ["thread-1", "thread-2"]}),
            (postgres_directory.TOTALS_SQL, {"thread_ids": ["thread-1", "thread-2"]}),
        ]
        plans = {text: await explained(database_url, text, **values) for text, values in looks}
    for text, plan in plans.items():
        assert "Seq Scan" not in plan, plan
        if "hashtextextended" in text:
            assert postgres_index.INDEX in plan, plan
            assert "Sort" not in plan, plan


async def test_no_look_at_sqlite_scans_a_table(database_url: str, tmp_path: Path) -> None:
    async with filled("sqlite", database_url, tmp_path, 2_000):
        for text in (
            sqlite_directory.FIRST_THREAD_SQL,
            sqlite_directory.NEXT_THREAD_SQL,
            sqlite_directory.FIRST_NAMING_SQL,
            sqlite_directory.NAMING_BELOW_SQL,
            sqlite_directory.NAMING_BEHIND_SQL,
            sqlite_directory.NEWEST_SQL.replace("?1", "?"),
            sqlite_directory.TOP_SQL,
            sqlite_directory.TOP_OF_ANY_SQL,
            sqlite_directory.VALUE_SQL,
            sqlite_directory.OWNER_SQL,
            sqlite_directory.TOTAL_SQL.replace("?1", "?"),
        ):
            steps = explained_sqlite(tmp_path / FILE, text)
            searches = [step for step in steps if step.startswith(("SEARCH", "SCAN")) and "CONSTANT ROW" not in step]
            assert searches, steps
            assert all(step.startswith("SEARCH") for step in searches), steps
            if sqlite_directory.USER_KEY + " = ?" in text:
                assert sqlite_index.INDEX in searches[0]


@BOTH
async def test_listing_reads_no_more_of_a_database_that_is_five_times_as_large(
    name: str, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    counts = []
    for size, url, folder in ((5_000, database_url, "small"), (25_000, twin_database_url, "large")):
        (tmp_path / folder).mkdir()
        async with filled(name, url, tmp_path / folder, size) as backend:
            counts.append(await rows_touched(name, backend, url))
    assert counts[1] <= 1.5 * counts[0], counts


async def rows_touched(name: str, backend: Backend, url: str) -> float:
    """How much the database does to list a user's newest threads: rows read, or steps of SQLite's machine."""
    if name == "sqlite":
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection = backend._saver.conn  # type: ignore[attr-defined]  # the SQLite backend's
        await connection.set_progress_handler(count, 100)
        assert len(await backend.heads(HeadQuery(50, GROWING_USER))) == 50
        await connection.set_progress_handler(None, 0)
        return steps
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SELECT pg_stat_reset()")
    assert len(await backend.heads(HeadQuery(50, GROWING_USER))) == 50
    await backend.renew()  # sessions tell of themselves when they end, at the latest
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        async with asyncio.timeout(10):
            while True:
                cursor = await connection.execute(
                    "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables"
                )
                row = await cursor.fetchone()
                if row and row[0]:
                    return float(row[0])
                await asyncio.sleep(0.05)


@BOTH
async def test_ten_setups_at_once_make_the_index_once(name: str, database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        backends = [
            await stack.enter_async_context(opened_backend(config_of(name, database_url, tmp_path), setup=False))
            for _ in range(10)
        ]
        await asyncio.gather(*(backend.setup() for backend in backends))
        assert [await backend.has_thread_index() for backend in backends] == [True] * 10
        await backends[0].apply(put("thread", 1, metadata={"user_id": "ada"}))
        assert [head.thread_id for head in await backends[9].heads(HeadQuery(5, "ada"))] == ["thread"]


TEN_SETUPS = """
import asyncio, os, sys
from pathlib import Path
from tests.support.backends import config_of, opened_backend

async def main():
    async with opened_backend(config_of(sys.argv[1], sys.argv[2], Path(sys.argv[3]))):
        pass

children = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        asyncio.run(main())
        os._exit(0)  # after an error the exit is another one
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.thorough
@BOTH
def test_ten_processes_that_set_up_at_once_make_the_index_once(name: str, database_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TEN_SETUPS, name, database_url, str(tmp_path)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert (ran.stderr, ran.returncode) == ("", 0)

    async def is_there() -> bool:
        async with opened_backend(config_of(name, database_url, tmp_path), setup=False) as backend:
            await backend.setup()
            return await backend.has_thread_index()

    assert asyncio.run(is_there())


@BOTH
async def test_index_is_not_made_where_nothing_may_be_and_listing_works_without_it(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number in range(20):
            await backend.apply(put(f"thread-{number % 4}", number, metadata={"user_id": "ada"}))
    drop(name, database_url, tmp_path)
    async with opened_backend(config_of(name, database_url, tmp_path, auto_setup=False)) as backend:
        assert not await backend.has_thread_index()
        assert len(await backend.heads(HeadQuery(10, "ada"))) == 4
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        assert await backend.has_thread_index()


def drop(name: str, database_url: str, folder: Path) -> None:
    if name == "sqlite":
        with closing(sqlite3.connect(folder / FILE)) as file, file:
            file.execute(f"DROP INDEX {sqlite_index.INDEX}")
    else:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"DROP INDEX {postgres_index.INDEX}".encode())


@BOTH
async def test_index_that_takes_too_long_is_left_for_another_time(name: str, database_url: str, tmp_path: Path) -> None:
    async with filled(name, database_url, tmp_path, 20_000) as backend:
        drop(name, database_url, tmp_path)
        assert not await backend.make_thread_index(0.001)
        assert not await backend.has_thread_index()
        assert "thread_index_missing" in backend.notes()
        assert len(await backend.heads(HeadQuery(10, STEADY_USER))) == 10
        assert await backend.make_thread_index()
        assert await backend.has_thread_index()
        assert "thread_index_missing" not in backend.notes()


async def test_user_who_may_not_make_an_index_is_served_without_it(database_url: str, tmp_path: Path) -> None:
    async with opened_backend(config_of("postgres", database_url, tmp_path)) as backend:
        await backend.apply(put("thread", 1, metadata={"user_id": "ada"}))
    drop("postgres", database_url, tmp_path)
    role = f"guest_{tmp_path.name[-20:]}".replace("-", "_").lower()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'".encode())
        connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}".encode())
    try:
        guest = psycopg.conninfo.make_conninfo(database_url, user=role, password="guest")
        async with opened_backend(config_of("postgres", guest, tmp_path)) as backend:
            assert "must be owner" in backend.notes()["thread_index_missing"]
            assert [head.thread_id for head in await backend.heads(HeadQuery(5, "ada"))] == ["thread"]
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())


async def test_index_is_made_in_the_schema_of_the_tables(database_url: str, tmp_path: Path) -> None:
    for schema in ("agents", "others"):
        config = config_of("postgres", database_url, tmp_path, postgres_schema=schema)
        async with opened_backend(config) as backend:
            assert await backend.has_thread_index()
            await backend.apply(put(f"of {schema}", 1, metadata={"user_id": "ada"}))
            assert [head.thread_id for head in await backend.heads(HeadQuery(5, "ada"))] == [f"of {schema}"]
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT schemaname FROM pg_indexes WHERE indexname = %s", [postgres_index.INDEX])
        assert sorted(rows.fetchall()) == [("agents",), ("others",)]


@pytest.mark.parametrize("postgres_schema", [None, "agents"])
async def test_behind_a_pooler_the_index_of_a_small_table_is_made_and_that_of_a_large_one_left(
    postgres_schema: str | None, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PgBouncer(database_url, pool_size=1) as pooler:
        config = config_of("postgres", pooler.url, tmp_path, postgres_schema=postgres_schema)
        async with opened_backend(config) as backend:
            assert await backend.has_thread_index()
            await backend.apply(put("thread", 1, metadata={"user_id": "ada"}))
            assert [head.thread_id for head in await backend.heads(HeadQuery(5, "ada"))] == ["thread"]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"DROP INDEX {postgres_schema or 'public'}.{postgres_index.INDEX}".encode())
        monkeypatch.setattr(postgres_index, "SMALL_TABLE", 0)
        async with opened_backend(config) as backend:
            assert not await backend.has_thread_index()
            assert "direct connection" in backend.notes()["thread_index_missing"]
            assert [head.thread_id for head in await backend.heads(HeadQuery(5, "ada"))] == ["thread"]


async def test_only_one_process_at_a_time_makes_the_index(database_url: str, tmp_path: Path) -> None:
    async with opened_backend(config_of("postgres", database_url, tmp_path)) as backend:
        assert isinstance(backend, PostgresBackend)
        drop("postgres", database_url, tmp_path)
        with psycopg.connect(database_url) as other:
            other.execute(postgres_index.TRY_LOCK_SQL)
            assert not await backend.make_thread_index()
            assert backend.notes()["thread_index_missing"] == "another process is making it"
        assert await backend.make_thread_index()
