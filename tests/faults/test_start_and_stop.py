"""Start and stop with a real PostgreSQL that is down, frozen, or up and healthy; nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from enhanced_checkpointing import (
    CheckpointerError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
)
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.upkeep.lifecycle import SETTLE_SECONDS
from tests.support.checkpointer import (
    FAST,
    SwitchedSqlite,
    eventually,
    opened,
    postgres,
    recovered,
    saver_of,
    sqlite,
)
from tests.support.checkpoints import Thread
from tests.support.dump import assert_equal_dumps, dump_postgres
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch
from tests.support.twins import assert_equals_twin, run_graphs

STOP_BOUND = FAST["deadline"] + FAST["shutdown_grace"] + 2 * SETTLE_SECONDS
"""What a stop may cost whatever the server does: a last probe, the drain, and the attempts that were left behind."""


async def test_start_with_the_database_down_is_degraded_and_sets_it_up_later_by_itself(
    private_postgres: LocalPostgres, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    names = ["counting_chain", "subgraph"]
    private_postgres.stop()
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url()))
    assert await manager.initialize() is False
    assert manager.health_status["overall_status"] == "degraded"
    assert "refused" in manager.health_status["primary_checkpointer"]["error"]
    await run_graphs(saver_of(manager), names)
    assert manager.health_status["journal"]["pending"] > 0
    await asyncio.to_thread(private_postgres.start)
    await recovered(manager)
    assert manager.health_status["overall_status"] == "healthy"
    await manager.cleanup()
    await assert_equals_twin(private_postgres.url(), twin_database_url, names)


async def test_start_that_requires_the_primary_raises_while_it_is_down(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    private_postgres.stop()
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url(), require_primary=True))
    with pytest.raises(CheckpointUnavailableError, match=r"(?s)refused.*CHECKPOINT_REQUIRE_PRIMARY=true"):
        await manager.initialize()
    await manager.cleanup()  # as in a `finally`: it must not hide the error by raising it again
    with pytest.raises(CheckpointerError, match="not open"):
        manager.get_checkpointer()
    private_postgres.start()
    assert await manager.initialize() is True
    await manager.cleanup()


async def test_start_with_a_frozen_server_is_bounded_and_degraded(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    private_postgres.freeze()
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url()))
    started_at = time.monotonic()
    assert await manager.initialize() is False
    assert time.monotonic() - started_at < 3.0  # libpq's own time-out of a connect is 2 s at least
    private_postgres.thaw()
    await recovered(manager)
    await manager.cleanup()


TEN_STARTS = """
import asyncio, multiprocessing, sys, time
from enhanced_checkpointing import EnhancedCheckpointerManager, create_postgres_checkpointer

def start(url, together):
    async def run():
        async with EnhancedCheckpointerManager(create_postgres_checkpointer(url, pool_max_size=2)) as manager:
            health = manager.health_status
            assert health["primary_healthy"], health
    together.wait()
    started_at = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started_at < 30

forking = multiprocessing.get_context("fork")  # after the imports, which would cost ten times as much else
together = forking.Barrier(10)
processes = [forking.Process(target=start, args=(sys.argv[1], together)) for _ in range(10)]
for process in processes: process.start()
for process in processes: process.join()
sys.exit([process.exitcode for process in processes] != [0] * 10)
"""


def test_ten_processes_set_up_a_fresh_database_at_once(database_url: str) -> None:
    command = [sys.executable, "-c", TEN_STARTS, database_url]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    with psycopg.connect(database_url) as connection:
        migrations = connection.execute("SELECT count(*), count(DISTINCT v) FROM checkpoint_migrations").fetchone()
        broken = connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone()
    assert migrations is not None
    assert migrations[0] == migrations[1] > 0
    assert broken == (0,)


async def test_two_schemas_of_one_database_are_separate(database_url: str, twin_database_url: str) -> None:
    case = GRAPHS["counting_chain"]
    async with (
        opened(postgres(database_url, postgres_schema="first")) as first,
        opened(postgres(database_url, postgres_schema="second")) as second,
        opened(postgres(twin_database_url)) as twin,
    ):
        await run_case(case, saver_of(first), "thread")
        await run_case(case, saver_of(twin), "thread")
        assert await saver_of(second).aget_tuple({"configurable": {"thread_id": "thread"}}) is None
    assert_equal_dumps(dump_postgres(database_url, schema="first"), dump_postgres(twin_database_url))
    assert not any(dump_postgres(database_url, schema="second").values())
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('public.checkpoints')").fetchone() == (None,)


async def test_initialize_and_cleanup_may_run_in_different_tasks(database_url: str, no_leaks: LeakWatch) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url))
    assert await asyncio.create_task(manager.initialize()) is True
    await asyncio.create_task(run_graphs(saver_of(manager), ["counting_chain"]))
    await asyncio.create_task(manager.cleanup())


@pytest.mark.parametrize("enable_async", [True, False], ids=["own loop", "loop thread"])
async def test_initialize_at_the_same_time_opens_once(
    enable_async: bool, database_url: str, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url, enable_async=enable_async))
    assert await asyncio.gather(*(manager.initialize() for _ in range(3))) == [True] * 3
    await run_graphs(saver_of(manager), ["counting_chain"])
    await manager.cleanup()


@pytest.mark.parametrize("enable_async", [True, False], ids=["own loop", "loop thread"])
async def test_cleanup_is_harmless_before_a_start_twice_and_at_the_same_time(
    enable_async: bool, database_url: str, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url, enable_async=enable_async))
    await manager.cleanup()
    await manager.initialize()
    async with asyncio.timeout(5):
        await asyncio.gather(*(manager.cleanup() for _ in range(3)))
    await manager.cleanup()
    assert await manager.initialize() is True
    await manager.cleanup()


async def test_stop_with_a_frozen_server_is_bounded_and_leaves_nothing(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url()))
    await manager.initialize()
    private_postgres.freeze()
    writing = asyncio.create_task(run_graphs(saver_of(manager), ["counting_chain"]))
    await asyncio.sleep(0.2)  # the first write hangs now
    started_at = time.monotonic()
    await manager.cleanup()
    assert time.monotonic() - started_at < STOP_BOUND
    with pytest.raises(CheckpointerError):
        await writing
    with pytest.raises(CheckpointerError, match="not open"):
        manager.get_checkpointer()


async def stop_with_a_backlog(server: LocalPostgres, caplog: pytest.LogCaptureFixture, **fields: Any) -> str:
    """Stop while the database is down; returns what is said of the backlog."""
    manager = EnhancedCheckpointerManager(postgres(server.url(), **fields))
    await manager.initialize()
    server.kill()
    await run_graphs(saver_of(manager), ["counting_chain"])
    pending = manager.health_status["journal"]["pending"]
    started_at = time.monotonic()
    await manager.cleanup()
    assert time.monotonic() - started_at < 1.5
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Stopped with")]
    assert f"Stopped with {pending} acknowledged operations not in the primary" in line
    return line


async def test_stop_with_a_backlog_is_bounded_and_the_next_start_drains_it(
    private_postgres: LocalPostgres, twin_database_url: str, caplog: pytest.LogCaptureFixture, no_leaks: LeakWatch
) -> None:
    assert "the next start drains them" in await stop_with_a_backlog(private_postgres, caplog, shutdown_grace=0.5)
    await asyncio.to_thread(private_postgres.start)
    async with opened(postgres(private_postgres.url())) as manager:
        await recovered(manager)
    await assert_equals_twin(private_postgres.url(), twin_database_url, ["counting_chain"])
    assert os.listdir(".checkpoints/journal") == []


async def test_graph_goes_on_after_a_restart_in_the_outage_from_what_the_journal_holds(
    private_postgres: LocalPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    await stop_with_a_backlog(private_postgres, caplog, on_unknown_thread="start_fresh")
    async with opened(postgres(private_postgres.url(), environment="production")) as manager:
        saver = saver_of(manager)
        graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver)
        state = await graph.aget_state({"configurable": {"thread_id": "thread-counting_chain"}})
        assert state.values["log"]
        await asyncio.to_thread(private_postgres.start)
        await recovered(manager)
        assert (await graph.aget_state({"configurable": {"thread_id": "thread-counting_chain"}})).values == state.values


async def test_stop_with_a_backlog_in_memory_says_how_much_is_lost(
    private_postgres: LocalPostgres, caplog: pytest.LogCaptureFixture, no_leaks: LeakWatch
) -> None:
    assert "they are lost" in await stop_with_a_backlog(private_postgres, caplog, journal="memory")


async def test_stop_drains_a_backlog_when_the_database_just_came_back(
    private_postgres: LocalPostgres, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    config = postgres(private_postgres.url(), probe_backoff_min=60.0, probe_backoff_max=60.0)  # nobody notices before
    manager = EnhancedCheckpointerManager(config)
    await manager.initialize()
    private_postgres.kill()
    await run_graphs(saver_of(manager), ["counting_chain"])
    await asyncio.to_thread(private_postgres.start)
    assert manager.health_status["journal"]["pending"] > 0
    await manager.cleanup()
    await assert_equals_twin(private_postgres.url(), twin_database_url, ["counting_chain"])


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.005, 0.02, 0.05, 0.1])
async def test_start_that_is_cancelled_leaves_nothing_and_can_be_repeated(
    seconds: float, database_url: str, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url))
    starting = asyncio.create_task(manager.initialize())
    await asyncio.sleep(seconds)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled() or starting.result() is True
    await manager.cleanup()
    assert await manager.initialize() is True
    await manager.cleanup()


async def test_start_that_is_cancelled_while_the_server_hangs_leaves_nothing(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    private_postgres.freeze()
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url()))
    starting = asyncio.create_task(manager.initialize())
    await asyncio.sleep(0.2)
    started_at = time.monotonic()
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert time.monotonic() - started_at < STOP_BOUND
    private_postgres.thaw()
    assert await manager.initialize() is True
    await manager.cleanup()


async def test_cleanup_that_is_cancelled_leaves_nothing_in_a_loop_of_its_own(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url(), enable_async=False))
    await manager.initialize()
    private_postgres.kill()
    await run_graphs(saver_of(manager), ["counting_chain"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # the drain is waited for now
            await manager.cleanup()
    await manager.cleanup()


async def test_cleanup_after_a_cancelled_cleanup_ends_everything(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(private_postgres.url(), shutdown_grace=1.0))
    await manager.initialize()
    private_postgres.kill()
    await run_graphs(saver_of(manager), ["counting_chain"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await manager.cleanup()
    await manager.cleanup()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("checkpoint")], names
    private_postgres.start()
    assert await manager.initialize()
    await manager.cleanup()


async def test_process_that_runs_drains_what_one_that_stopped_in_the_outage_left(tmp_path: Path) -> None:
    """A rolling restart: the new process runs already when the old one ends with its backlog."""
    fields: dict[str, Any] = {"journal_dir": tmp_path / "journal", "shutdown_grace": 0.0, "on_unknown_thread": "raise"}
    path = tmp_path / "checkpoints.sqlite"
    async with opened(sqlite(path, **fields)) as new:
        async with opened(sqlite(path, **fields)) as old:
            thread = Thread(saver_of(old), "thread")
            await thread.put()
            switched = SwitchedSqlite(old, path)
            await switched.off()
            await thread.put()
            await thread.put()
            pending = old.health_status["journal"]["pending"]
        assert pending == 2
        await eventually(lambda: new.health_status["journal"]["pending"] == pending)
        in_the_outage = await saver_of(new).aget_tuple(thread.config)
        assert in_the_outage is not None
        assert in_the_outage.checkpoint["id"] == thread.ids[-1], "also for those that read"
        await switched.on()
        await recovered(new)
        assert [found.checkpoint["id"] async for found in saver_of(new).alist(thread.config)] == thread.ids[::-1]
        assert new.health_status["divergences"]["count"] == 0
    assert list((tmp_path / "journal").iterdir()) == []
