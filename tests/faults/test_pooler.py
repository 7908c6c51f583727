"""Behind a real PgBouncer in transaction mode, where no two transactions need to meet the same server session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from tests.support.checkpointer import opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.dump import assert_equal_dumps, dump_postgres
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch
from tests.support.pgbouncer import PgBouncer
from tests.support.retention import let_pass

CASE = GRAPHS["counting_chain"]
THREADS = 20


@pytest.fixture
def pooler(database_url: str) -> Iterator[PgBouncer]:
    with PgBouncer(database_url) as pooler:
        yield pooler


async def run_threads(manager: EnhancedCheckpointerManager, between: Any = None) -> None:
    """Twenty conversations at once, each on a thread of its own."""
    saver = saver_of(manager)
    async with asyncio.TaskGroup() as group:
        for number in range(THREADS):
            group.create_task(run_case(CASE, saver, f"thread-{number}", between=between))


async def assert_twin_is_equal(database_url: str, twin_database_url: str, schema: str = "public") -> None:
    async with opened(postgres(twin_database_url)) as twin:
        await run_threads(twin)
    assert_equal_dumps(dump_postgres(database_url, schema=schema), dump_postgres(twin_database_url))


def tables_of(url: str) -> set[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return set(
            connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE tablename LIKE 'checkpoint%'"
            ).fetchall()
        )


@pytest.mark.parametrize("prepare_threshold", [0, 5, None], ids=["at once", "at the fifth", "never"])
async def test_concurrent_threads_through_the_pooler_equal_their_twin(
    prepare_threshold: int | None,
    pooler: PgBouncer,
    database_url: str,
    twin_database_url: str,
    no_leaks: LeakWatch,
) -> None:
    config = postgres(pooler.url, postgres_prepare_threshold=prepare_threshold, require_primary=True, deadline=5.0)
    async with opened(config) as manager:
        await run_threads(manager)
        report = await manager.health_check()
        assert report["overall_status"] == "healthy"
        assert report["primary_checkpointer"]["transaction_pooler"] is True
        assert report["journal"]["pending"] == 0
    await assert_twin_is_equal(database_url, twin_database_url)


async def test_direct_connection_is_not_taken_for_a_pooler(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        assert (await manager.health_check())["primary_checkpointer"]["transaction_pooler"] is False


@pytest.mark.parametrize("postgres_schema", [None, "agents"])
async def test_pooler_that_dies_under_load_loses_nothing(
    postgres_schema: str | None, pooler: PgBouncer, database_url: str, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    turned = 0

    async def break_once(turn: int) -> None:
        nonlocal turned
        turned += turn
        if turned == THREADS // 2:
            pooler.kill()

    config = postgres(pooler.url, postgres_schema=postgres_schema, deadline=5.0)
    async with opened(config) as manager:
        await run_threads(manager, between=break_once)
        assert manager.health_status["journal"]["pending"] > 0
        pooler.start()
        await recovered(manager)
        assert manager.health_status["primary_checkpointer"]["transaction_pooler"] is True
        assert manager.health_status["divergences"]["count"] == 0
    await assert_twin_is_equal(database_url, twin_database_url, postgres_schema or "public")


async def test_one_server_session_is_enough(database_url: str, no_leaks: LeakWatch) -> None:
    with PgBouncer(database_url, pool_size=1) as narrow:
        for thread in ("first", "second"):  # the second one meets the session, and whatever the first one left in it
            async with opened(postgres(narrow.url, require_primary=True)) as manager:
                await run_case(CASE, saver_of(manager), thread)
                assert manager.health_status["overall_status"] == "healthy"


async def test_schema_setting_holds_for_every_session_behind_the_pooler(
    pooler: PgBouncer, database_url: str, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    async with (
        opened(postgres(pooler.url, postgres_schema="first", require_primary=True, deadline=5.0)) as first,
        opened(postgres(pooler.url, postgres_schema="second", require_primary=True, deadline=5.0)) as second,
    ):
        await run_threads(first)
        assert await saver_of(second).aget_tuple({"configurable": {"thread_id": "thread-0"}}) is None
    names = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations")
    assert tables_of(database_url) == {(schema, name) for schema in ("first", "second") for name in names}
    await assert_twin_is_equal(database_url, twin_database_url, "first")
    # What another client of the pooler meets on the same server sessions is as it was.
    with psycopg.connect(pooler.url, autocommit=True) as stranger:
        for _ in range(10):
            assert stranger.execute("SHOW search_path").fetchone() == ('"$user", public',)


async def test_write_that_was_left_behind_is_drained_behind_the_pooler(
    pooler: PgBouncer, database_url: str, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    with psycopg.connect(database_url, autocommit=True) as blocker:
        async with opened(postgres(pooler.url)) as manager:
            assert await saver_of(manager).aget_tuple({"configurable": {"thread_id": "late"}}) is None
            with blocker.transaction():
                blocker.execute("LOCK TABLE checkpoints, checkpoint_blobs, checkpoint_writes")
                found = await run_case(CASE, saver_of(manager), "late")  # the first write is left behind on its session
                assert manager.health_status["journal"]["pending"] > 0
            await recovered(manager)
            graph = CASE.builder().compile(checkpointer=saver_of(manager))
            assert (await graph.aget_state({"configurable": {"thread_id": "late"}})).values == found


@pytest.mark.parametrize("through_pooler", [True, False])
async def test_fence_spares_the_stranger_whose_process_id_the_pooler_made_up(
    through_pooler: bool, pooler: PgBouncer, database_url: str, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    with psycopg.connect(database_url, autocommit=True) as stranger:
        async with opened(postgres(pooler.url if through_pooler else database_url)) as manager:
            await run_case(CASE, saver_of(manager), "thread")
            backend = manager.components.backend
            assert isinstance(backend, PostgresBackend)
            backend._connections.note_lost(stranger.info.backend_pid, ("thread",))
            assert await backend.fence("thread") is True
            assert backend.gauges()["lost_sessions"] == 0
        if through_pooler:
            assert stranger.execute("SELECT 1").fetchone() == (1,)
        else:  # so it would have been
            with pytest.raises(psycopg.OperationalError):
                stranger.execute("SELECT 1")


async def test_one_of_two_retires_old_threads_through_the_pooler(pooler: PgBouncer) -> None:
    fields: dict[str, Any] = {"postgres_schema": "agents", "journal": "off", "deadline": 5.0}
    async with opened(postgres(pooler.url, **fields)) as one, opened(postgres(pooler.url, **fields)) as other:
        for number in range(20):
            await Thread(saver_of(one), f"thread-{number}").put()
        for manager in (one, other):
            let_pass(manager, 100)
        found = await asyncio.gather(one.run_retention(), other.run_retention())
        assert sorted(sweep.deleted for sweep in found) == [0, 20], [sweep.stopped for sweep in found]
        assert sorted(sweep.sole for sweep in found) == [False, True]
        assert (await other.run_retention()).sole
