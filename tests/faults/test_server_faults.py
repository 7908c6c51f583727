"""The server itself fails under running graphs: FAULTS rows 1 to 6, 11, 13 to 15, 17 and 18."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, hand_over, reachable_temporary_directory
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.disks import small_disk
from tests.support.leaks import LeakWatch
from tests.support.postgres import ClusterTemplate
from tests.support.twins import assert_equals_twin, run_graphs

GRAPHS = ["counting_chain", "parallel", "unchanged_channel"]
LATE = 0.1
"""Seconds that a call may return after its deadline."""
NOISE = 0.1
"""Seconds more that this test grants to a busy machine."""


def pending(manager: EnhancedCheckpointerManager) -> int:
    return int(manager.health_status["journal"]["pending"])


async def in_thread(work: Callable[[], object]) -> None:
    """Do something slow to the server without stopping the event loop that the checkpointer runs on."""
    await asyncio.to_thread(work)


def faulty_between(*steps: Callable[[], Awaitable[None]] | None) -> Callable[[int], Awaitable[None]]:
    """Before turn n of each graph, do step n."""

    async def between(turn: int) -> None:
        step = steps[turn] if turn < len(steps) else None
        if step is not None:
            await step()

    return between


async def test_server_that_is_stopped_under_running_graphs_loses_nothing(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    async with opened(postgres(private_postgres.url())) as manager:
        for name in GRAPHS:
            await run_graphs(saver_of(manager), [name], faulty_between(None, lambda: in_thread(private_postgres.stop)))
            assert pending(manager) > 0
            await in_thread(private_postgres.start)
            await recovered(manager)
    await assert_equals_twin(private_postgres.url(), twin_database_url, GRAPHS)


async def test_server_that_crashes_under_running_graphs_loses_nothing(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    async with opened(postgres(private_postgres.url())) as manager:
        for name in GRAPHS:
            await run_graphs(saver_of(manager), [name], faulty_between(None, lambda: in_thread(private_postgres.kill)))
            assert pending(manager) > 0
            await in_thread(private_postgres.start)
            await recovered(manager)
    await assert_equals_twin(private_postgres.url(), twin_database_url, GRAPHS)


async def test_backend_that_is_killed_while_it_writes_loses_nothing(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    async def kill_a_backend() -> None:  # and with it all sessions: the server resets its shared memory
        private_postgres.kill_backend(own_sessions(private_postgres)[0])

    async with opened(postgres(private_postgres.url())) as manager:
        for name in GRAPHS:
            await run_graphs(saver_of(manager), [name], faulty_between(None, kill_a_backend))
            await recovered(manager)
    await assert_equals_twin(private_postgres.url(), twin_database_url, GRAPHS)


def own_sessions(server: LocalPostgres) -> list[int]:
    """Process ids of the checkpointer's sessions."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'enhanced-checkpointing'"
        ).fetchall()
    return [process_id for (process_id,) in rows]


async def test_terminated_session_is_retried_once_without_failover(private_postgres: LocalPostgres) -> None:
    async with opened(postgres(private_postgres.url(), probe_interval=60.0)) as manager:
        thread = Thread(saver_of(manager), "idle")
        await thread.put()
        with psycopg.connect(private_postgres.url(), autocommit=True) as connection:
            for _ in range(3):
                terminated = connection.execute(
                    "SELECT count(pg_terminate_backend(pid, 1000)) FROM pg_stat_activity "
                    "WHERE application_name = 'enhanced-checkpointing'"
                ).fetchone()
                assert terminated is not None
                assert terminated[0] >= 1
                await thread.put()
                assert manager.components.engine.journaling.journaled == 0
                assert manager.health_status["primary_healthy"]
        assert await thread.stored_ids() == thread.ids


async def test_pool_full_of_dead_connections_costs_no_failover(private_postgres: LocalPostgres) -> None:
    """All idle connections are cut at once, as by a firewall: a call must not meet one after the other."""
    async with opened(postgres(private_postgres.url(), pool_min_size=8, probe_interval=60.0)) as manager:
        threads = [Thread(saver_of(manager), f"thread-{number}") for number in range(8)]
        await asyncio.gather(*(thread.put() for thread in threads))
        await eventually(lambda: manager.components.backend.gauges()["available"] == 8)
        assert len(own_sessions(private_postgres)) >= 8
        terminate_sessions(private_postgres)
        for thread in threads:
            await thread.put()
        assert manager.components.engine.journaling.journaled == 0
        for thread in threads:
            assert await thread.stored_ids() == thread.ids


async def test_session_terminated_in_mid_statement_is_retried_once_without_failover(
    private_postgres: LocalPostgres,
) -> None:
    async with opened(postgres(private_postgres.url(), probe_interval=60.0)) as manager:
        thread = Thread(saver_of(manager), "active")
        await thread.put()
        with (
            psycopg.connect(private_postgres.url()) as locker,
            psycopg.connect(private_postgres.url(), autocommit=True) as connection,
        ):
            locker.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
            writing = asyncio.create_task(thread.put())
            await asyncio.sleep(0.2)
            victims = connection.execute(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchall()
            assert victims == [(True,)]
            locker.rollback()
            await writing
        assert manager.components.engine.journaling.journaled == 0
        assert await thread.stored_ids() == thread.ids


async def test_one_hanging_backend_delays_only_its_own_call(private_postgres: LocalPostgres) -> None:
    async with opened(postgres(private_postgres.url(), pool_min_size=4, probe_interval=60.0)) as manager:
        saver = saver_of(manager)
        threads = [Thread(saver, f"thread-{number}") for number in range(8)]
        await asyncio.gather(*(thread.put() for thread in threads))
        victim = own_sessions(private_postgres)[0]
        private_postgres.freeze_backend(victim)
        try:
            for _ in range(12):
                took = await asyncio.gather(*(thread.timed_put() for thread in threads))
                assert max(took) <= 1.0 + LATE + NOISE
            assert sum(seconds > 0.5 for seconds in took) == 0, "the hanging connection was not given up"
            assert manager.health_status["primary_healthy"]
        finally:
            private_postgres.thaw_backend(victim)
        await recovered(manager)
        for thread in threads:
            assert await thread.stored_ids() == thread.ids


async def test_frozen_server_bounds_every_call_and_recovery_is_noticed_at_once(
    private_postgres: LocalPostgres, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 15.0
    async with opened(postgres(private_postgres.url(), probe_backoff_min=0.5, probe_backoff_max=15.0)) as manager:
        thread = Thread(saver_of(manager), "frozen")
        for _ in range(5):
            await thread.put()
        await in_thread(private_postgres.freeze)
        first = await thread.timed_put()
        later = sorted([await thread.timed_put() for _ in range(200)] + [await thread.timed_get() for _ in range(200)])
        assert first <= 1.0 + LATE
        assert later[int(len(later) * 0.99)] <= 0.02, later[-10:]
        await asyncio.sleep(3)
        await in_thread(private_postgres.thaw)
        thawed_at = time.monotonic()
        await eventually(lambda: bool(manager.health_status["primary_healthy"]))
        assert time.monotonic() - thawed_at <= 2.0
        await recovered(manager)
        assert await thread.stored_ids() == thread.ids


async def test_zombie_write_does_not_resurrect_a_deleted_thread(private_postgres: LocalPostgres) -> None:
    async with opened(postgres(private_postgres.url(), pool_min_size=1, pool_max_size=1)) as manager:
        thread = Thread(saver_of(manager), "deleted")
        await thread.put()
        await in_thread(private_postgres.freeze)
        await thread.put()  # goes out to the frozen server, and is then journaled
        await saver_of(manager).adelete_thread("deleted")
        assert await saver_of(manager).aget_tuple(thread.config) is None
        await in_thread(private_postgres.thaw)
        await recovered(manager)
        await asyncio.sleep(0.5)
        assert await saver_of(manager).aget_tuple(thread.config) is None
        assert await thread.stored_ids() == []
    with psycopg.connect(private_postgres.url()) as connection:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            assert connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,)


async def test_flapping_server_keeps_order_and_transitions_bounded(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    ups_and_downs = 7
    async with opened(postgres(private_postgres.url())) as manager:
        transitions: list[bool] = []
        told = manager.components.breaker._on_transition

        def count(opened_now: bool, reason: str) -> None:
            transitions.append(opened_now)
            told(opened_now, reason)

        manager.components.breaker._on_transition = count
        thread = Thread(saver_of(manager), "flapping")
        flapping = asyncio.create_task(_flap(private_postgres, ups_and_downs))
        newest = ""
        while not flapping.done():
            await thread.put()
            found = await saver_of(manager).aget_tuple(thread.config)
            assert found is not None
            assert found.checkpoint["id"] >= newest, "the newest checkpoint went backwards"
            newest = found.checkpoint["id"]
            assert newest == thread.ids[-1]
            await asyncio.sleep(0.02)
        await flapping
        await recovered(manager)
        assert len(transitions) <= 2 * ups_and_downs + 2
        assert await thread.stored_ids() == thread.ids
        assert await thread.stored_parents() == [None, *thread.ids[:-1]]


async def _flap(server: LocalPostgres, times: int) -> None:
    for _ in range(times):
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(0.7)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(0.7)


async def test_read_only_server_is_an_outage_although_it_answers_pings(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    def read_only(value: str) -> None:
        with psycopg.connect(private_postgres.url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)

    async with opened(postgres(private_postgres.url())) as manager:
        await run_graphs(saver_of(manager), GRAPHS, faulty_between(None, lambda: in_thread(lambda: read_only("on"))))
        assert not manager.health_status["primary_healthy"]
        assert pending(manager) > 0
        await asyncio.sleep(1.0)  # several probes, each of which can connect and select
        assert (await manager.health_check())["primary_checkpointer"]["breaker"] == "open"
        await in_thread(lambda: read_only("off"))
        await recovered(manager)
    await assert_equals_twin(private_postgres.url(), twin_database_url, GRAPHS)


async def test_server_without_free_connections_is_an_outage_that_ends(cluster_template: ClusterTemplate) -> None:
    settings = {"max_connections": "8", "superuser_reserved_connections": "0"}
    with cluster_template.server(settings) as server:
        async with opened(postgres(server.url(), pool_min_size=0)) as manager:
            thread = Thread(saver_of(manager), "crowded")
            await thread.put()
            terminate_sessions(server)
            crowd = [psycopg.connect(server.url()) for _ in range(_free(server))]
            try:
                await thread.put()
                assert not manager.health_status["primary_healthy"]
                assert pending(manager) == 1
            finally:
                for connection in crowd:
                    connection.close()
            await recovered(manager)
            assert await thread.stored_ids() == thread.ids


def terminate_sessions(server: LocalPostgres) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
            "WHERE application_name = 'enhanced-checkpointing'"
        )


def _free(server: LocalPostgres) -> int:
    """How many more clients the server takes."""
    taken: list[psycopg.Connection[tuple[object, ...]]] = []
    try:
        while True:
            taken.append(psycopg.connect(server.url()))
    except psycopg.OperationalError:
        return len(taken)
    finally:
        for connection in taken:
            connection.close()
        time.sleep(0.2)


async def test_long_crash_recovery_is_waited_for(cluster_template: ClusterTemplate) -> None:
    settings = {"checkpoint_timeout": "1h", "max_wal_size": "4GB", "fsync": "off"}
    with cluster_template.server(settings) as server:
        async with opened(postgres(server.url())) as manager:
            thread = Thread(saver_of(manager), "recovering")
            await thread.put()
            await in_thread(lambda: _write_much_wal(server))
            await in_thread(server.kill)
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            while not starting.done():
                await thread.put()
                await asyncio.sleep(0.05)
            await starting
            await recovered(manager)
            assert manager.components.engine.journaling.journaled > 0
            assert await thread.stored_ids() == thread.ids


def _write_much_wal(server: LocalPostgres) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE much AS SELECT generate_series(1, 700000) AS number")
        connection.execute("UPDATE much SET number = number + 1")


async def test_unknown_thread_in_an_outage_raises_instead_of_looking_empty(private_postgres: LocalPostgres) -> None:
    async with opened(postgres(private_postgres.url(), on_unknown_thread="raise")) as manager:
        known = Thread(saver_of(manager), "known")
        await known.put()
        await in_thread(private_postgres.kill)
        await known.put()
        with pytest.raises(CheckpointUnavailableError, match="not 'not found'"):
            await saver_of(manager).aget_tuple({"configurable": {"thread_id": "cold", "checkpoint_ns": ""}})
        await in_thread(private_postgres.start)
        await recovered(manager)
        assert await saver_of(manager).aget_tuple({"configurable": {"thread_id": "cold", "checkpoint_ns": ""}}) is None


async def test_full_disk_of_the_server_is_an_outage_that_ends(
    private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    folder = reachable_temporary_directory("small-disk-")
    try:
        with small_disk(folder / "disk", megabytes=32) as disk:
            hand_over(disk)
            with psycopg.connect(private_postgres.url(), autocommit=True) as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                connection.execute("CREATE DATABASE small TABLESPACE small")
            ballast = disk / "ballast"

            async def fill() -> None:
                with pytest.raises(OSError, match="No space"):
                    ballast.write_bytes(bytes(64 * 1024 * 1024))

            async with opened(postgres(private_postgres.url("small"))) as manager:
                await run_graphs(saver_of(manager), ["counting_chain"])
                await fill()
                big = Thread(saver_of(manager), "big")
                for _ in range(20):  # what has room on pages that are there already is no outage yet
                    await big.put(note="x" * 100_000)
                assert pending(manager) > 0
                await run_graphs(saver_of(manager), ["parallel"])
                ballast.unlink()
                await recovered(manager)
                assert await big.stored_ids() == big.ids
                await manager.delete_thread("big")
            await assert_equals_twin(private_postgres.url("small"), twin_database_url, ["counting_chain", "parallel"])
            private_postgres.kill()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["role", "url"])
async def test_what_was_drained_survives_a_crash_although_the_server_would_acknowledge_early(
    where: str, cluster_template: ClusterTemplate
) -> None:
    """`synchronous_commit=off` loses what was committed last; nothing of it is in the journal any more."""
    with cluster_template.server({"wal_writer_delay": "10s"}) as server:
        url = server.url()
        if where == "role":
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER ROLE postgres SET synchronous_commit = off")
        else:
            url += "?options=-c%20synchronous_commit%3Doff"
        async with opened(postgres(url)) as manager:
            thread = Thread(saver_of(manager), "crashed")
            await thread.put()
            await asyncio.to_thread(server.kill)
            for _ in range(3):
                await thread.put()
            await asyncio.to_thread(server.start)
            await recovered(manager)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await recovered(manager)
            assert await thread.stored_ids() == thread.ids
            await thread.put()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await recovered(manager)
            assert await thread.stored_ids() == thread.ids
